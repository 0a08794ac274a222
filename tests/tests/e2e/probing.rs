//! What others find at the coordinator's doors: OpenSSL, curl and testssl.sh, none of them ours.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::{
    federation::{Federation, Process, text, wait_for},
    skipped,
};
use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
};

/// Any of OpenSSL's ciphers, also those that it has thought better of.
const ANY_CIPHER: &str = "ALL:@SECLEVEL=0";

/// Whether a program is there; where it is not, that is said aloud.
fn is_there(program: &str, version: &str, package: &str) -> bool {
    let there = Command::new(program).arg(version).output().is_ok_and(|out| out.status.success());
    if !there {
        skipped(&format!("there is no {program}; `apt-get install -y {package}` mends that"));
    }
    there
}

struct Doors {
    federation: Federation,
    _coordinator: Process,
    agents: SocketAddr,
    operators: SocketAddr,
}

fn doors() -> Result<Doors> {
    let mut federation = Federation::new()?;
    let coordinator = federation.start_coordinator()?;
    let addresses = federation.addresses.context("started")?;
    let (agents, operators) = (addresses.grpc, addresses.rest);
    Ok(Doors { federation, _coordinator: coordinator, agents, operators })
}

impl Doors {
    fn operator(&self) -> PathBuf {
        self.federation.identity("operator", "omar")
    }

    /// What OpenSSL's client says of a door, with an operator's certificate or without. It says a word after the handshake and
    /// waits for the answer, for a server that refuses a client in TLS 1.3 says so then.
    fn openssl(&self, door: SocketAddr, certified: bool, args: &[&str]) -> Result<String> {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-connect", &door.to_string(), "-ign_eof"]).args(args);
        if certified {
            let dir = self.operator();
            openssl.arg("-cert").arg(dir.join("cert.pem")).arg("-key").arg(dir.join("key.pem"));
        }
        let streams = openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = streams.spawn()?;
        let request = b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        // Whoever was refused does not listen any more.
        let _ = child.stdin.take().context("piped")?.write_all(request);
        Ok(text(&child.wait_with_output()?))
    }

    /// Curl's exit code, and the status of HTTP, for the coordinator's status.
    fn curl(&self, certified: bool, args: &[&str]) -> Result<(Option<i32>, String)> {
        let mut curl = Command::new("curl");
        let url = format!("https://{}/api/v1/status", self.operators);
        // Whom it talks to is not what is asked here, and its certificate names no host.
        curl.args(["--silent", "--insecure", "--max-time", "30", "--output", "/dev/null"]);
        curl.args(["--write-out", "%{http_code}"]).args(args).arg(url);
        if certified {
            let dir = self.operator();
            curl.arg("--cert").arg(dir.join("cert.pem")).arg("--key").arg(dir.join("key.pem"));
        }
        let out = curl.output()?;
        Ok((out.status.code(), String::from_utf8(out.stdout)?))
    }
}

/// Shows TLS-06, by OpenSSL: nothing before TLS 1.3, no weak signature, group or cipher, nothing to resume, nobody without a certificate.
#[test]
fn openssl_finds_tls_1_3_alone_and_that_a_certificate_is_demanded() -> Result<()> {
    if !is_there("openssl", "version", "openssl") {
        return Ok(());
    }
    let doors = doors()?;
    for door in [doors.agents, doors.operators] {
        for version in ["-tls1", "-tls1_1", "-tls1_2"] {
            let said = doors.openssl(door, true, &[version, "-cipher", ANY_CIPHER])?;
            let refused = ["alert protocol version", "alert handshake failure"];
            let refused = refused.iter().any(|alert| said.contains(alert));
            ensure!(refused && said.contains("Cipher is (NONE)"), "{door} {version}: {said}");
        }
        let said = doors.openssl(door, false, &["-tls1_3"])?;
        ensure!(said.contains("alert certificate required"), "{door}: {said}");
        for weak in [
            ["-groups", "ffdhe2048"],
            ["-groups", "secp521r1"],
            ["-ciphersuites", "TLS_AES_128_CCM_8_SHA256"],
        ] {
            let said = doors.openssl(door, true, &[&["-tls1_3"][..], &weak].concat())?;
            let refused = said.contains("alert handshake failure");
            ensure!(refused && said.contains("Cipher is (NONE)"), "{door} {weak:?}: {said}");
        }
    }
    // What was refused above was refused for what it asked: with nothing wrong, the very same client is served.
    let said = doors.openssl(doors.operators, true, &["-tls1_3"])?;
    ensure!(said.contains("HTTP/1.1 200 OK") && said.contains("Server Temp Key: X25519"), "{said}");
    let wanted =
        said.lines().find_map(|line| line.strip_prefix("Requested Signature Algorithms: "));
    let wanted = wanted.context("it names what it takes a signature by")?;
    ensure!(["SHA1", "MD5", "DSA+SHA224"].iter().all(|weak| !wanted.contains(weak)), "{wanted}");
    // A session that could be resumed would skip the check of the certificate.
    ensure!(!said.contains("New Session Ticket arrived"), "{said}");
    ensure!(said.contains("Early data was not sent"), "{said}");
    Ok(())
}

/// Shows TLS-06, by curl, which an operator's scripts may well use.
#[test]
fn curl_is_served_by_tls_1_3_and_a_certificate_alone() -> Result<()> {
    if !is_there("curl", "--version", "curl") {
        return Ok(());
    }
    let doors = doors()?;
    ensure!(doors.curl(true, &[])? == (Some(0), "200".to_owned()));
    let (code, status) = doors.curl(true, &["--tls-max", "1.2"])?;
    ensure!(code == Some(35) && status == "000", "{code:?} {status}");
    let (code, status) = doors.curl(false, &[])?;
    ensure!(code.is_some_and(|code| code != 0) && status == "000", "{code:?} {status}");
    let refused = |reason: &str| {
        wait_for(reason, || {
            let entries = doors.federation.entries("connection.refused")?;
            Ok(entries.iter().any(|e| e["entry"]["reason"] == reason).then_some(()))
        })
    };
    refused("no_client_certificate")?;
    refused("tls_version")
}

/// Shows TLS-04: between our own programs the key exchange is the hybrid with ML-KEM; a client that has none gets X25519, and
/// the log says of each what it was.
#[test]
fn the_hybrid_key_exchange_is_taken_where_both_have_it_and_the_log_says_so() -> Result<()> {
    let doors = doors()?;
    doors.federation.falaj_json(&["status"])?;
    let groups = || -> Result<Vec<String>> {
        let admitted = doors.federation.entries("connection.admitted")?;
        let group = |e: &serde_json::Value| e["entry"]["tls_group"].as_str().map(str::to_owned);
        Ok(admitted.iter().filter_map(group).collect())
    };
    let ours = groups()?;
    ensure!(!ours.is_empty() && ours.iter().all(|g| g == "X25519MLKEM768"), "{ours:?}");
    if !is_there("openssl", "version", "openssl") {
        return Ok(());
    }
    for (asked, logged) in [("X25519", "X25519"), ("P-256", "secp256r1")] {
        let said = doors.openssl(doors.operators, true, &["-tls1_3", "-groups", asked])?;
        ensure!(said.contains("HTTP/1.1 200 OK"), "{said}");
        let seen = groups()?;
        ensure!(seen.iter().any(|g| g == logged), "{logged}: {seen:?}");
    }
    Ok(())
}

/// Shows TLS-06, by a scanner that looks for everything that was ever wrong with a protocol.
#[test]
fn testssl_finds_tls_1_3_alone() -> Result<()> {
    if !is_there("testssl", "--version", "testssl.sh") {
        return Ok(());
    }
    let doors = doors()?;
    for door in [doors.agents, doors.operators] {
        let found = doors.federation.dir().join(format!("{}.json", door.port()));
        let mut scan = Command::new("testssl");
        scan.args(["--quiet", "--color", "0", "--warnings", "off", "--connect-timeout", "20"]);
        let out = scan.arg("--jsonfile").arg(&found).args(["-p", &door.to_string()]);
        let out = out.stdin(Stdio::null()).output()?;
        let findings: Vec<serde_json::Value> = serde_json::from_slice(&fs::read(&found)?)
            .with_context(|| format!("testssl: {}", text(&out)))?;
        for (id, finding) in [
            ("SSLv2", "not offered"),
            ("SSLv3", "not offered"),
            ("TLS1", "not offered"),
            ("TLS1_1", "not offered"),
            ("TLS1_2", "not offered"),
            ("TLS1_3", "offered with final"),
        ] {
            let of_it = findings.iter().find(|f| f["id"] == id).with_context(|| id.to_owned())?;
            ensure!(of_it["finding"] == finding, "{door}: {of_it}");
        }
    }
    Ok(())
}
