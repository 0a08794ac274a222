//! A time-stamp authority for tests: OpenSSL's own, behind a server that speaks HTTP on loopback.

use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Whether OpenSSL is there; where it is not, that is said aloud.
pub(crate) fn openssl_is_there() -> bool {
    let there =
        Command::new("openssl").arg("version").output().is_ok_and(|out| out.status.success());
    if !there {
        // Past the capture of the test's output.
        let said = "SKIPPED: there is no OpenSSL; `apt-get install -y openssl` mends that\n";
        let _ = std::io::stderr().write_all(said.as_bytes());
    }
    there
}

/// Runs OpenSSL in a folder.
pub(crate) fn openssl(dir: &Path, args: &[&str]) -> Result<Vec<u8>> {
    let out = Command::new("openssl").args(args).current_dir(dir).output()?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.success(), "openssl {}: {said}", args.join(" "));
    Ok(out.stdout)
}

/// How an authority is made.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// Its key, as `openssl req -newkey` names it.
    pub(crate) key: &'static [&'static str],
    /// The digest that is signed.
    pub(crate) digest: &'static str,
    /// The digest by which the signature names the certificate.
    pub(crate) ess: &'static str,
    /// The extended key usage of its certificate.
    pub(crate) purpose: &'static str,
    /// From when to when its certificate is valid.
    pub(crate) valid: [&'static str; 2],
}

/// An RSA key that nothing is wrong with.
pub(crate) const SOUND: Kind = Kind {
    key: &["rsa:2048"],
    digest: "sha256",
    ess: "sha256",
    purpose: "critical,timeStamping",
    valid: ["20200101000000Z", "20991231235959Z"],
};

/// The files of an authority: its issuers, its certificate and its key.
#[derive(Clone)]
pub(crate) struct Files {
    pub(crate) dir: PathBuf,
}

impl Files {
    /// Makes them in a folder: a root, an issuer below it, and the authority's certificate.
    pub(crate) fn make(dir: &Path, kind: Kind) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let config = "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nnew_certs_dir=.\nserial=serial\ndefault_md=sha256\npolicy=p\nunique_subject=no\nemail_in_dn=no\n[p]\norganizationName=optional\ncommonName=supplied\n[req]\ndistinguished_name=n\nprompt=no\n[n]\nCN=nobody\n";
        fs::write(dir.join("ca.cnf"), config)?;
        fs::write(dir.join("index.txt"), "")?;
        fs::write(dir.join("serial"), "1000\n")?;
        fs::write(dir.join("tsaserial"), "01\n")?;
        let issuing = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n";
        fs::write(dir.join("issuing.ext"), issuing)?;
        let own = format!(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage={}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n",
            kind.purpose
        );
        fs::write(dir.join("tsa.ext"), own)?;
        let request = |name: &str, subject: &str, key: &[&str]| {
            let (out, keyout) = (format!("{name}.csr"), format!("{name}.key"));
            let mut args = vec!["req", "-config", "ca.cnf", "-new", "-nodes", "-out", &out];
            args.extend(["-keyout", &keyout, "-subj", subject, "-newkey"]);
            args.extend(key);
            openssl(dir, &args).map(drop)
        };
        let sign = |name: &str, issuer: Option<&str>, extensions: &str, valid: [&str; 2]| {
            let (csr, pem) = (format!("{name}.csr"), format!("{name}.pem"));
            let key = format!("{}.key", issuer.unwrap_or(name));
            let cert = issuer.map(|issuer| format!("{issuer}.pem"));
            let mut args = vec!["ca", "-batch", "-notext", "-config", "ca.cnf", "-in", &csr];
            args.extend(["-out", &pem, "-keyfile", &key, "-extfile", extensions]);
            args.extend(["-startdate", valid[0], "-enddate", valid[1]]);
            match &cert {
                Some(cert) => args.extend(["-cert", cert]),
                None => args.push("-selfsign"),
            }
            openssl(dir, &args).map(drop)
        };
        request("root", "/O=Falaj test/CN=Root", &["rsa:2048"])?;
        sign("root", None, "issuing.ext", SOUND.valid)?;
        request("issuing", "/O=Falaj test/CN=Issuing", &["rsa:2048"])?;
        sign("issuing", Some("root"), "issuing.ext", SOUND.valid)?;
        request("tsa", "/O=Falaj test/CN=Time-stamp authority", kind.key)?;
        sign("tsa", Some("issuing"), "tsa.ext", kind.valid)?;
        let config = format!(
            "[t]\nserial=tsaserial\nsigner_cert=tsa.pem\nsigner_key=tsa.key\ncerts=issuing.pem\nsigner_digest={}\ndefault_policy=1.2.3.4.1\nother_policies=1.2.3.4.5.6\ndigests=sha256,sha384,sha512\naccuracy=secs:1\nclock_precision_digits=3\nordering=yes\ntsa_name=yes\ness_cert_id_chain=no\ness_cert_id_alg={}\n",
            kind.digest, kind.ess
        );
        fs::write(dir.join("ts.cnf"), config)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The certificate of the root.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root.pem")
    }

    /// What the authority answers.
    pub(crate) fn answer(&self, query: &[u8]) -> Result<Vec<u8>> {
        fs::write(self.dir.join("query.tsq"), query)?;
        let args = [
            "ts",
            "-reply",
            "-config",
            "ts.cnf",
            "-section",
            "t",
            "-queryfile",
            "query.tsq",
            "-out",
            "answer.tsr",
        ];
        openssl(&self.dir, &args)?;
        Ok(fs::read(self.dir.join("answer.tsr"))?)
    }

    /// The same stamp as in an answer of `honest`, but signed by this one, whatever its certificate is for.
    pub(crate) fn signed_anew(&self, honest: &Self, query: &[u8]) -> Result<Vec<u8>> {
        fs::write(self.dir.join("honest.tsr"), honest.answer(query)?)?;
        openssl(
            &self.dir,
            &["ts", "-reply", "-in", "honest.tsr", "-token_out", "-out", "honest.der"],
        )?;
        openssl(
            &self.dir,
            &[
                "cms",
                "-verify",
                "-noverify",
                "-inform",
                "DER",
                "-in",
                "honest.der",
                "-out",
                "content.der",
            ],
        )?;
        let sign = [
            "cms",
            "-sign",
            "-cades",
            "-binary",
            "-nodetach",
            "-econtent_type",
            "1.2.840.113549.1.9.16.1.4",
            "-outform",
            "DER",
            "-md",
            "sha256",
            "-signer",
            "tsa.pem",
            "-inkey",
            "tsa.key",
            "-certfile",
            "issuing.pem",
            "-in",
            "content.der",
            "-out",
            "token.der",
        ];
        openssl(&self.dir, &sign)?;
        let token = fs::read(self.dir.join("token.der"))?;
        let length = u16::try_from(token.len() + 5)?.to_be_bytes();
        let head = [&[0x30, 0x82], &length[..], &[0x30, 0x03, 0x02, 0x01, 0x00]].concat();
        Ok([head, token].concat())
    }

    /// Whether OpenSSL accepts an answer as a stamp of these bytes.
    pub(crate) fn accepts(&self, answer: &[u8], data: &[u8]) -> Result<bool> {
        fs::write(self.dir.join("asked.tsr"), answer)?;
        fs::write(self.dir.join("asked"), data)?;
        let args = ["ts", "-verify", "-in", "asked.tsr", "-data", "asked", "-CAfile", "root.pem"];
        let out = Command::new("openssl").args(args).current_dir(&self.dir).output()?;
        let said = String::from_utf8_lossy(&out.stdout).contains("Verification: OK");
        ensure!(said == out.status.success(), "openssl ts contradicts itself");
        Ok(said)
    }
}

/// What the server answers.
pub(crate) enum Reply {
    /// This, with status 200.
    Bytes(Vec<u8>),
    /// A status, and nothing else.
    Status(u16),
    /// Nothing, for as long as the asker waits.
    Never,
    /// Bytes without an end.
    Endless,
}

type Answers = Box<dyn FnMut(&[u8]) -> Result<Reply> + Send>;

/// An HTTP server on loopback.
pub(crate) struct Server {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    answers: Arc<Mutex<Answers>>,
    serving: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(
        answers: impl FnMut(&[u8]) -> Result<Reply> + Send + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let ended = Arc::new(AtomicBool::new(false));
        let answers: Arc<Mutex<Answers>> = Arc::new(Mutex::new(Box::new(answers)));
        let (stop, answering) = (ended.clone(), answers.clone());
        let serving = thread::spawn(move || {
            for connection in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(connection) = connection else { continue };
                let answering = answering.clone();
                thread::spawn(move || {
                    // Whoever asks may go away.
                    let _ = serve(&connection, &answering);
                });
            }
        });
        Ok(Self { address, ended, answers, serving: Some(serving) })
    }

    /// One that answers as an authority does.
    pub(crate) fn honest(files: &Files) -> Result<Self> {
        let files = files.clone();
        Self::start(move |query| files.answer(query).map(Reply::Bytes))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/tsa", self.address)
    }

    /// Answers otherwise from now on.
    pub(crate) fn set(&self, answers: impl FnMut(&[u8]) -> Result<Reply> + Send + 'static) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(answers);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

fn serve(mut connection: &TcpStream, answers: &Mutex<Answers>) -> Result<()> {
    let mut reader = BufReader::new(connection);
    let (mut length, mut fits, mut line) = (0, false, String::new());
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let lower = line.trim().to_ascii_lowercase();
        if lower.is_empty() {
            break;
        }
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().context("a length")?;
        }
        fits |= lower == "content-type: application/timestamp-query";
    }
    let mut query = vec![0; length];
    reader.read_exact(&mut query)?;
    let reply = if fits {
        (answers.lock().unwrap_or_else(PoisonError::into_inner))(&query)
    } else {
        Ok(Reply::Status(415))
    };
    let head = |status: u16, length: &str| {
        format!(
            "HTTP/1.1 {status} Whatever\r\ncontent-type: application/timestamp-reply\r\nconnection: close\r\n{length}\r\n"
        )
    };
    match reply {
        Ok(Reply::Bytes(bytes)) => {
            connection
                .write_all(head(200, &format!("content-length: {}\r\n", bytes.len())).as_bytes())?;
            connection.write_all(&bytes)?;
        }
        Ok(Reply::Status(status)) => {
            connection.write_all(head(status, "content-length: 0\r\n").as_bytes())?;
        }
        Ok(Reply::Never) => {
            // Ends when the asker has gone.
            connection.read_exact(&mut [0])?;
        }
        Ok(Reply::Endless) => {
            connection.write_all(head(200, "").as_bytes())?;
            loop {
                connection.write_all(&[0x30; 4_096])?;
            }
        }
        Err(e) => {
            let _ =
                std::io::stderr().write_all(format!("the test's authority: {e:#}\n").as_bytes());
            connection.write_all(head(500, "content-length: 0\r\n").as_bytes())?;
        }
    }
    Ok(())
}
