//! Where entries that are followed go: to the screen, as events for a SIEM, or as syslog to a receiver.

use crate::show;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use falaj_certs::tls::provider;
use falaj_core::{
    audit::{
        Entry,
        siem::{DATAGRAM_BYTES_MAX, framed, ocsf, syslog},
    },
    merkle::leaf_hash,
};
use falaj_proto::rest::LogEntry;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use std::{path::Path, str::FromStr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// How often a receiver that is away is tried again before this gives up.
const RETRIES: u32 = 30;
/// How long to wait in between.
const PAUSE: Duration = Duration::from_secs(1);
/// A receiver that takes nothing for so long is away.
const SILENCE: Duration = Duration::from_secs(30);

/// In which form entries are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Events of the Open Cybersecurity Schema Framework, one JSON document a line.
    Ocsf,
    /// Messages of syslog (RFC 5424).
    Syslog,
}

/// Where syslog goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Receiver {
    scheme: Scheme,
    host: String,
    port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Udp,
    Tcp,
    Tls,
}

impl FromStr for Receiver {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no receiver: write udp://host:514, tcp://host:601 or tls://host:6514"
            )
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let scheme = match scheme {
            "udp" => Scheme::Udp,
            "tcp" => Scheme::Tcp,
            "tls" => Scheme::Tls,
            _ => return Err(wrong()),
        };
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        // An address of IPv6 stands in brackets.
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        let fits = !host.is_empty() && (bare.is_some() || !host.contains([':', '/', '@']));
        let port = port.parse().ok().filter(|port| *port > 0 && fits).ok_or_else(wrong)?;
        Ok(Self { scheme, host: host.to_owned(), port })
    }
}

/// Where entries go, and in which form.
pub(crate) struct Feed {
    form: Form,
    /// Where the coordinator runs.
    host: String,
}

enum Form {
    Screen { json: bool },
    Ocsf { origin: String },
    Lines,
    Sink(Box<Sink>),
}

impl Feed {
    /// To the screen, for people or for machines.
    pub(crate) const fn screen(json: bool) -> Self {
        Self { form: Form::Screen { json }, host: String::new() }
    }

    /// As events of OCSF, of the log of this name.
    pub(crate) const fn ocsf(origin: String) -> Self {
        Self { form: Form::Ocsf { origin }, host: String::new() }
    }

    /// As syslog of what runs on `host`: to a receiver, or one message a line.
    ///
    /// # Errors
    /// When `ca` is missing where it is needed, or cannot be used.
    pub(crate) fn syslog(host: String, to: Option<Receiver>, ca: Option<&Path>) -> Result<Self> {
        let form = match to {
            Some(receiver) => Form::Sink(Box::new(Sink::new(receiver, ca)?)),
            None => Form::Lines,
        };
        Ok(Self { form, host })
    }

    /// The next entry; when this returns it has been written.
    ///
    /// # Errors
    /// When it is not the entry that was hashed, or nobody takes it.
    pub(crate) async fn put(
        &mut self,
        found: &LogEntry,
        people: impl FnOnce(&LogEntry) -> String,
    ) -> Result<()> {
        if let Form::Screen { json } = self.form {
            let line = if json { serde_json::to_string(found)? } else { people(found) };
            return show::line(&line);
        }
        let bytes = serde_json::to_vec(&found.entry)?;
        ensure!(
            leaf_hash(&bytes).to_string() == found.leaf_hash,
            "entry {} is not the one that was hashed: do not believe this answer",
            found.index
        );
        let entry = Entry::parse(&bytes)
            .with_context(|| format!("entry {} cannot be read", found.index))?;
        match &mut self.form {
            Form::Ocsf { origin } => {
                let event = ocsf(&entry, &bytes, Some(origin)).to_bytes();
                show::line(&String::from_utf8_lossy(&event))
            }
            Form::Sink(sink) => {
                let message = syslog(&entry, &bytes, &self.host, sink.limit());
                sink.send(&message).await
            }
            _ => {
                let message = syslog(&entry, &bytes, &self.host, None);
                show::line(&String::from_utf8_lossy(&message))
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

enum Open {
    Udp(UdpSocket),
    Stream(Box<dyn Stream>),
}

/// A receiver of syslog. It acknowledges nothing, so a connection that breaks may take messages with it: the last one
/// that was written is sent again over the next.
struct Sink {
    receiver: Receiver,
    tls: Option<TlsConnector>,
    open: Option<Open>,
    last: Vec<u8>,
}

impl Sink {
    fn new(receiver: Receiver, ca: Option<&Path>) -> Result<Self> {
        let tls = match (receiver.scheme, ca) {
            (Scheme::Tls, Some(ca)) => Some(connector(ca)?),
            (Scheme::Tls, None) => {
                bail!(
                    "tls:// needs --to-ca: the certificates, in PEM, of who may vouch for the receiver"
                )
            }
            (_, Some(_)) => bail!("--to-ca is for tls:// only"),
            (_, None) => None,
        };
        Ok(Self { receiver, tls, open: None, last: Vec::new() })
    }

    /// The longest message.
    fn limit(&self) -> Option<usize> {
        (self.receiver.scheme == Scheme::Udp).then_some(DATAGRAM_BYTES_MAX)
    }

    /// Writes a message, over a new connection as often as one breaks.
    async fn send(&mut self, message: &[u8]) -> Result<()> {
        let mut tries = 0;
        while let Err(e) = self.try_send(message).await {
            self.open = None;
            tries += 1;
            let Receiver { host, port, .. } = &self.receiver;
            if tries > RETRIES {
                return Err(e.context(format!("{host}:{port} takes no messages")));
            }
            eprintln!("{host}:{port} takes no messages, and is tried again: {e:#}");
            tokio::time::sleep(PAUSE).await;
        }
        if self.limit().is_none() {
            message.clone_into(&mut self.last);
        }
        Ok(())
    }

    async fn try_send(&mut self, message: &[u8]) -> Result<()> {
        if let Some(Open::Stream(stream)) = &mut self.open {
            // Who has closed the connection does not read what is written to it.
            let mut said = [0; 64];
            match timeout(Duration::ZERO, stream.read(&mut said)).await {
                Ok(Ok(0)) => bail!("it has closed the connection"),
                Ok(Err(e)) => return Err(e.into()),
                Ok(Ok(_)) | Err(_) => {}
            }
        }
        if self.open.is_none() {
            let open = timeout(SILENCE, self.connect()).await.context("it does not answer")??;
            let open = self.open.insert(open);
            if !self.last.is_empty() {
                write(open, &self.last).await?;
            }
        }
        let open = self.open.as_mut().ok_or_else(|| anyhow!("there is no connection"))?;
        write(open, message).await
    }

    async fn connect(&self) -> Result<Open> {
        let Receiver { scheme, host, port } = &self.receiver;
        if *scheme == Scheme::Udp {
            let mut addresses = tokio::net::lookup_host((host.as_str(), *port)).await?;
            let address = addresses.next().context("it has no address")?;
            let from = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(from).await?;
            socket.connect(address).await?;
            return Ok(Open::Udp(socket));
        }
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        Ok(Open::Stream(match &self.tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.connect(ServerName::try_from(host.clone())?, stream).await?),
        }))
    }
}

async fn write(open: &mut Open, message: &[u8]) -> Result<()> {
    let written = async {
        match open {
            Open::Udp(socket) => socket.send(message).await.map(drop),
            Open::Stream(stream) => {
                stream.write_all(&framed(message)).await?;
                stream.flush().await
            }
        }
    };
    Ok(timeout(SILENCE, written).await.context("it does not read")??)
}

/// TLS to a receiver for which somebody in `ca` vouches (RFC 5425).
fn connector(ca: &Path) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    let named = || format!("--to-ca {}", ca.display());
    for der in CertificateDer::pem_file_iter(ca).with_context(named)? {
        roots.add(der.with_context(named)?).with_context(named)?;
    }
    ensure!(!roots.is_empty(), "{}: there is no certificate in it", named());
    let config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use falaj_core::{
        audit::{Draft, Kind},
        time::Timestamp,
    };
    use tokio::net::TcpListener;

    fn found(seq: u64) -> LogEntry {
        let bytes = Draft::new(Kind::AdminRead).finish(seq, Timestamp::from_millis(0), [0; 16]);
        let entry = serde_json::from_slice(&bytes).expect("JSON");
        LogEntry { index: seq, leaf_hash: leaf_hash(&bytes).to_string(), entry, personal: None }
    }

    /// Reads one message by its count of octets; gives its sequence number.
    async fn received(stream: &mut TcpStream) -> String {
        let mut length = String::new();
        loop {
            match stream.read_u8().await.expect("a digit") {
                b' ' => break,
                digit => length.push(digit.into()),
            }
        }
        let mut message = vec![0; length.parse().expect("a length")];
        stream.read_exact(&mut message).await.expect("a message");
        let message = String::from_utf8(message).expect("UTF-8");
        assert!(
            message.starts_with("<110>1 1970-01-01T00:00:00.000Z log.example falaj - admin.read")
        );
        let (_, rest) = message.split_once("seq=\"").expect("a number");
        rest.split('"').next().unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn after_a_connection_that_broke_nothing_that_was_read_is_missing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let to = format!("tcp://{}", listener.local_addr().expect("an address"));
        let to = to.parse().expect("a receiver");
        let mut feed = Feed::syslog("log.example".into(), Some(to), None).expect("a feed");
        for seq in 0..2 {
            feed.put(&found(seq), |_| String::new()).await.expect("written");
        }
        let (mut first, _) = listener.accept().await.expect("a connection");
        assert_eq!(
            (received(&mut first).await, received(&mut first).await),
            ("0".into(), "1".into())
        );
        drop(first);
        feed.put(&found(2), |_| String::new()).await.expect("written");
        let (mut second, _) = listener.accept().await.expect("a connection");
        assert_eq!(
            (received(&mut second).await, received(&mut second).await),
            ("1".into(), "2".into())
        );
    }

    #[tokio::test]
    async fn tls_is_spoken_with_whom_the_given_certificates_vouch_for_and_nobody_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let made = || rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("made");
        let (own, strange) = (made(), made());
        let dir = tempfile::tempdir().expect("a folder");
        let (ca, other) = (dir.path().join("ca.pem"), dir.path().join("other.pem"));
        std::fs::write(&ca, own.cert.pem()).expect("written");
        std::fs::write(&other, strange.cert.pem()).expect("written");
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .expect("a certificate");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let served = tokio::spawn(async move {
            let mut said = Vec::new();
            for _ in 0..2 {
                let (stream, _) = listener.accept().await.expect("a connection");
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    said.push(None);
                    continue;
                };
                let mut head = [0; 8];
                let read = stream.read_exact(&mut head).await;
                said.push(read.ok().map(|_| head));
            }
            said
        });
        let to =
            || Receiver { scheme: Scheme::Tls, host: "127.0.0.1".into(), port: address.port() };
        let mut strangers = Sink::new(to(), Some(&other)).expect("a sink");
        assert!(strangers.try_send(b"<110>1 x").await.is_err());
        let mut sink = Sink::new(to(), Some(&ca)).expect("a sink");
        sink.send(b"<110>1 x").await.expect("written");
        assert_eq!(served.await.expect("served"), [None, Some(*b"8 <110>1")]);
        assert!(Sink::new(to(), Some(Path::new("none.pem"))).is_err());
    }

    #[tokio::test]
    async fn a_datagram_is_a_message_without_a_frame() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let to = format!("udp://{}", socket.local_addr().expect("an address"));
        let to = to.parse().expect("a receiver");
        let mut feed = Feed::syslog("h".into(), Some(to), None).expect("a feed");
        feed.put(&found(3), |_| String::new()).await.expect("written");
        let mut message = [0; DATAGRAM_BYTES_MAX];
        let length = socket.recv(&mut message).await.expect("a datagram");
        assert!(
            message[..length]
                .starts_with(b"<110>1 1970-01-01T00:00:00.000Z h falaj - admin.read [")
        );
    }

    #[tokio::test]
    async fn an_entry_that_was_changed_on_its_way_is_not_passed_on() {
        let mut changed = found(1);
        changed.entry["kind"] = "model.read".into();
        let mut feed = Feed::ocsf("t".into());
        let refused = feed.put(&changed, |_| String::new()).await.expect_err("another entry");
        assert!(refused.to_string().contains("do not believe"), "{refused}");
    }

    #[test]
    fn receivers_are_named_with_scheme_host_and_port() {
        let read = |text: &str| text.parse::<Receiver>().ok().map(|r| (r.scheme, r.host, r.port));
        assert_eq!(read("udp://h:514"), Some((Scheme::Udp, "h".into(), 514)));
        assert_eq!(read("tls://[::1]:6514"), Some((Scheme::Tls, "::1".into(), 6_514)));
        for wrong in [
            "h:514",
            "http://h:514",
            "tcp://h",
            "tcp://:1",
            "tcp://h:0",
            "tcp://a@h:1",
            "tcp://::1:5",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        let tls = || "tls://h:6514".parse().expect("a receiver");
        assert!(Feed::syslog("h".into(), Some(tls()), None).is_err());
        let tcp = "tcp://h:601".parse().expect("a receiver");
        assert!(Feed::syslog("h".into(), Some(tcp), Some(Path::new("ca.pem"))).is_err());
    }
}
