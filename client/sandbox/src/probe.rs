//! Tries what a restricted process should not be able to do.

use crate::Limits;
use rustix::net::{
    AddressFamily, Protocol, SendFlags, SocketType, connect, ipproto, listen, sendto, socket,
};
use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// How long a connection is tried.
const PATIENCE: Duration = Duration::from_secs(5);
/// Attempts that a GPU's driver makes as well.
const LOCAL: &str = "connect to a local socket";
const UNBOUND: &str = "listen on a socket that has no port";
/// What makes a send connect first.
const FASTOPEN: SendFlags = SendFlags::from_bits_retain(0x2000_0000);

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What was tried.
    pub what: String,
    /// Whether it has to be refused.
    pub unwanted: bool,
    /// Why it was refused; nothing when it went through.
    pub refused: Option<String>,
}

impl Probe {
    /// Whether it is as it should be.
    #[must_use]
    pub const fn is_right(&self) -> bool {
        self.unwanted == self.refused.is_some()
    }
}

/// Tries to get out, and to what must still work. `elsewhere` listens, on another port than the coordinator's; `outside` is a
/// folder that may not be written, with a file `secret` that may not be read, and a socket `socket` on which somebody listens.
#[must_use]
pub fn probe(limits: &Limits, elsewhere: SocketAddr, outside: &Path) -> Vec<Probe> {
    let secret = outside.join("secret");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut tried = vec![
        of(
            format!("connect to {elsewhere}"),
            TcpStream::connect_timeout(&elsewhere, PATIENCE).map(drop),
        ),
        of(
            format!("connect to {elsewhere} by a multipath socket"),
            stream(Some(ipproto::MPTCP)).and_then(|s| Ok(connect(s, &elsewhere)?)),
        ),
        of(format!("connect to {elsewhere} by fast open"), fast_open(&elsewhere)),
        of("listen on a TCP port".into(), TcpListener::bind(any).map(drop)),
        of(UNBOUND.into(), stream(None).and_then(|s| Ok(listen(s, 1)?))),
        of(
            "open a raw socket".into(),
            socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))
                .map(drop)
                .map_err(Into::into),
        ),
        of(LOCAL.into(), UnixStream::connect(outside.join("socket")).map(drop)),
        of("run another program".into(), Command::new("/bin/true").status().map(drop)),
        of(format!("read {}", secret.display()), fs::read(&secret).map(drop)),
        of("read the passwords of this machine".into(), File::open("/etc/passwd").map(drop)),
        of(
            format!("write into {}", outside.display()),
            fs::write(outside.join("written"), b"").map(drop),
        ),
    ];
    let mut datagram = of("send a datagram".into(), datagram());
    datagram.unwanted = !limits.names;
    tried.push(datagram);
    if limits.gpu {
        // The driver needs local sockets, and listens on one.
        tried.retain(|probe| ![LOCAL, UNBOUND].contains(&probe.what.as_str()));
    } else if limits.local {
        // A TPM in software listens on one, and this does not.
        tried.retain(|probe| probe.what != LOCAL);
    }
    tried.extend(limits.write.iter().map(|folder| {
        let mut probe = of(format!("write into {}", folder.display()), written(folder));
        probe.unwanted = false;
        probe
    }));
    tried.extend(limits.devices.iter().map(|path| {
        let opened = File::options().read(true).write(true).open(path);
        let mut probe = of(format!("open {}", path.display()), opened.map(drop));
        probe.unwanted = false;
        probe
    }));
    tried.extend(limits.read.iter().map(|path| {
        let read =
            if path.is_dir() { fs::read_dir(path).map(drop) } else { File::open(path).map(drop) };
        let mut probe = of(format!("read {}", path.display()), read);
        probe.unwanted = false;
        probe
    }));
    tried
}

fn of(what: String, done: io::Result<()>) -> Probe {
    Probe { what, unwanted: true, refused: done.err().map(|e| e.to_string()) }
}

fn stream(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::INET, SocketType::STREAM, protocol)?)
}

fn fast_open(to: &SocketAddr) -> io::Result<()> {
    sendto(stream(None)?, b"probe", FASTOPEN, to)?;
    Ok(())
}

fn datagram() -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.send_to(b"probe", socket.local_addr()?)?;
    Ok(())
}

fn written(folder: &Path) -> io::Result<()> {
    let probe: PathBuf = folder.join(".sandbox-probe");
    fs::write(&probe, b"probe")?;
    fs::remove_file(probe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// The attempts themselves are good: what the sandbox does is shown by `falaj-agent sandbox check`.
    #[test]
    fn without_a_sandbox_every_attempt_goes_through() {
        let folder = tempfile::tempdir().expect("a folder");
        let outside = folder.path();
        fs::write(outside.join("secret"), "secret").expect("written");
        let _socket = UnixListener::bind(outside.join("socket")).expect("it listens");
        let elsewhere = TcpListener::bind("127.0.0.1:0").expect("it listens");
        let address = elsewhere.local_addr().expect("an address");
        let limits = Limits { write: vec![outside.to_owned()], ..Limits::default() };
        for found in probe(&limits, address, outside) {
            // Raw sockets are for root, and not every kernel has these other ways.
            let perhaps = ["raw socket", "multipath", "fast open"];
            let went =
                found.refused.is_none() || perhaps.iter().any(|word| found.what.contains(word));
            assert!(went, "{found:?}");
        }
    }
}
