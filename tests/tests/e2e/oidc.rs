//! Operators who sign in at a real identity provider: `oidc-provider`, a certified OpenID provider, as a process of its own.
//! Where Node or npm is missing, or its packages cannot be had, this says that it is skipped.

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use falaj_certs::{
    request::{SiteKey, generate},
    tls::{ServerExpectation, anonymous_client_config, web_client_config},
};
use falaj_tests::{
    federation::{Federation, Process, binary, repository, run, text, wait_for},
    skipped,
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{ClientConfig, pki_types::CertificateDer, pki_types::pem::PemObject as _};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, OnceLock},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// What the provider knows of a pipeline.
const SECRET: &str = "a-secret-of-the-pipeline";
/// What coordinators are to the provider.
const RESOURCE: &str = "https://coordinator.falaj.test";

/// The folder with the provider's packages; none where they cannot be had.
fn packages() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOLDER.get_or_init(|| match install() {
        Ok(folder) => Some(folder),
        Err(e) => {
            skipped(&format!("no identity provider (Node and npm are needed): {e:#}"));
            None
        }
    });
    found.as_deref()
}

/// Installs what `package-lock.json` names, beside the build.
fn install() -> Result<PathBuf> {
    let out = Command::new("node").arg("--version").output().context("node cannot be run")?;
    ensure!(out.status.success(), "node: {}", text(&out));
    let folder = repository().join("target/oidc");
    fs::create_dir_all(&folder)?;
    let lock = fs::read(repository().join("tests/oidc/package-lock.json"))?;
    let done = folder.join("done");
    if fs::read(&done).is_ok_and(|installed| installed == lock) {
        return Ok(folder.canonicalize()?);
    }
    for file in ["package.json", "package-lock.json"] {
        fs::copy(repository().join("tests/oidc").join(file), folder.join(file))?;
    }
    let words = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
    let out = Command::new("npm").args(words).current_dir(&folder).output();
    let out = out.context("npm cannot be run")?;
    ensure!(out.status.success(), "npm ci: {}", text(&out));
    fs::write(done, lock)?;
    Ok(folder.canonicalize()?)
}

/// A federation whose operators sign in.
struct World {
    federation: Federation,
    packages: &'static Path,
    provider: Process,
    _coordinator: Process,
    issuer: String,
    /// Where the coordinator takes tokens.
    at: String,
}

impl World {
    /// None where there is no provider. `extra` stands in the coordinator's configuration.
    fn new(extra: &str) -> Result<Option<Self>> {
        let Some(packages) = packages() else { return Ok(None) };
        let mut federation = Federation::new()?;
        let tls = federation.dir().join("idp");
        fs::create_dir(&tls)?;
        let mut params = CertificateParams::new(vec!["localhost".into()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let ca = tls.join("cert.pem");
        fs::write(&ca, params.self_signed(&key)?.pem())?;
        fs::write(tls.join("key.pem"), key.serialize_pem())?;
        let (provider, issuer) = start_provider(&federation, packages, "0", "first")?;
        federation.coordinator_extra = format!(
            "[oidc]\naddress = \"127.0.0.1:0\"\nauthority = \"{}\"\nsession_s = 600\n\
             [[oidc.provider]]\nissuer = \"{issuer}\"\nca = \"{}\"\nclient_id = \"falaj-cli\"\n\
             place = \"ae-on/ae-az\"\ndevice = true\nresource = \"{RESOURCE}\"\n\
             groups = {{ fl-science = [\"data-scientist\"], fl-audit = [\"auditor\"] }}\n\
             clients = {{ nightly = [\"operator\"] }}\n{extra}",
            federation.ca().display(),
            ca.display(),
        );
        let coordinator = federation.start_coordinator()?;
        let at = format!("https://{}", federation.ready("oidc")?);
        Ok(Some(Self { federation, packages, provider, _coordinator: coordinator, issuer, at }))
    }

    fn falaj(&self, who: &str) -> Result<Command> {
        let rest = self.federation.addresses.context("started")?.rest;
        let mut command = Command::new(binary("falaj"));
        command.arg("--server").arg(format!("https://{rest}"));
        command.arg("--trust").arg(self.federation.ca().join("trust.toml"));
        command.arg("--login").arg(self.federation.dir().join("login").join(who));
        command.arg("--json").stdin(Stdio::null());
        Ok(command)
    }

    /// Signs in, and opens the address that is printed as this person.
    fn signs_in(&self, who: &str, more: &[&str]) -> Result<Output> {
        let mut login = self.falaj(who)?;
        login.args(["login", "--at", &self.at]).args(more);
        let log = self.federation.dir().join(format!("login-{who}.txt"));
        let mut child = login.stdout(Stdio::piped()).stderr(fs::File::create(&log)?).spawn()?;
        let before = if more.contains(&"--device") { "or open " } else { "your browser:\n" };
        let url = wait_for("an address to open", || {
            let said = fs::read_to_string(&log)?;
            if let Some(status) = child.try_wait()? {
                bail!("falaj login ended ({status}): {said}");
            }
            let after = said.split_once(before).and_then(|(_, after)| after.split_once('\n'));
            Ok(after.map(|(url, _)| url.to_owned()))
        })?;
        let browser = repository().join("tests/oidc/browser.mjs");
        let ca = self.federation.dir().join("idp/cert.pem");
        let mut browser_is = Command::new("node");
        let browser_is = browser_is.arg(browser).arg(&url).arg(who);
        let out = browser_is.env("NODE_EXTRA_CA_CERTS", ca).output()?;
        ensure!(out.status.success(), "the browser: {}", text(&out));
        let mut out = child.wait_with_output()?;
        out.stderr = fs::read(&log)?;
        Ok(out)
    }

    /// Signs in as a pipeline.
    fn pipeline(&self, id: &str, secret: &str, mode: u32) -> Result<Output> {
        let file = self.federation.dir().join("secret");
        fs::write(&file, secret)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        let mut command = self.falaj(id)?;
        command.args(["login", "--at", &self.at]);
        command.env("FALAJ_CLIENT_ID", id).env("FALAJ_CLIENT_SECRET_FILE", &file);
        Ok(command.output()?)
    }

    /// An access token of the pipeline, as the provider gives it.
    fn token(&self) -> Result<String> {
        let ca = fs::read(self.federation.dir().join("idp/cert.pem"))?;
        let roots = CertificateDer::pem_slice_iter(&ca).collect::<Result<Vec<_>, _>>()?;
        let head = format!(
            "POST /token HTTP/1.1\r\nAuthorization: Basic {}\r\nContent-Type: application/x-www-form-urlencoded\r\n",
            STANDARD.encode(format!("nightly:{SECRET}"))
        );
        let form = format!("grant_type=client_credentials&resource={RESOURCE}");
        let (status, answer) = ask(web_client_config(roots)?, &self.issuer, &head, &form)?;
        ensure!(status == 200, "{status}: {answer}");
        Ok(answer["access_token"].as_str().context("a token")?.to_owned())
    }

    /// Comes to the coordinator with a token of this issuer.
    fn comes(&self, issuer: &str, token: &str, key: &SiteKey) -> Result<(u16, Value)> {
        let request = STANDARD.encode(key.request()?);
        let body = json!({ "issuer": issuer, "token": token, "request": request }).to_string();
        let expect = ServerExpectation::coordinator(&["ae-on/*"]);
        let tls = anonymous_client_config(&self.federation.trust()?, &expect, &["http/1.1"])?;
        let head = "POST /api/v1/login HTTP/1.1\r\nContent-Type: application/json\r\n";
        ask(tls, &self.at, head, &body)
    }

    /// Asks something else where operators sign in.
    fn asks(&self, what: &str) -> Result<(u16, Value)> {
        let expect = ServerExpectation::coordinator(&["ae-on/*"]);
        let tls = anonymous_client_config(&self.federation.trust()?, &expect, &["http/1.1"])?;
        ask(tls, &self.at, &format!("{what} HTTP/1.1\r\n"), "")
    }

    fn reasons(&self) -> Result<BTreeSet<String>> {
        let refused = self.federation.entries("connection.refused")?;
        let reason = |e: Value| e["entry"]["reason"].as_str().map(str::to_owned);
        Ok(refused.into_iter().filter_map(reason).collect())
    }

    /// The provider goes, and comes back with other keys.
    fn rotate(&mut self, name: &str) -> Result<()> {
        let port = self.issuer.rsplit(':').next().context("a port")?.to_owned();
        self.provider.kill()?;
        self.provider = start_provider(&self.federation, self.packages, &port, name)?.0;
        Ok(())
    }
}

/// Starts the provider; port 0 lets the system choose.
fn start_provider(
    federation: &Federation,
    packages: &Path,
    port: &str,
    name: &str,
) -> Result<(Process, String)> {
    let script = repository().join("tests/oidc/provider.mjs").canonicalize()?;
    let tls = federation.dir().join("idp");
    let words = [Path::new("node"), &script, &tls, packages, Path::new(port)];
    let words = words.map(|word| word.display().to_string());
    let mut provider = federation.spawn("provider", &words, &format!("idp/{name}.txt"))?;
    provider.says("\"issuer\"")?;
    let said = provider.output();
    let line = said.lines().find(|line| line.starts_with("{\"issuer\"")).context("a line")?;
    let issuer = serde_json::from_str::<Value>(line)?["issuer"].as_str().map(str::to_owned);
    Ok((provider, issuer.context("an issuer")?))
}

/// One request over TLS: the status, and the document that came.
fn ask(tls: ClientConfig, at: &str, head: &str, body: &str) -> Result<(u16, Value)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let host = at.trim_start_matches("https://").to_owned();
    let name = host.split(':').next().context("a name")?.to_owned();
    let bytes = format!(
        "{head}Host: {host}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut answer = Vec::new();
    runtime.block_on(async {
        let tcp = TcpStream::connect(&host).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let mut stream = connector.connect(name.try_into()?, tcp).await?;
        stream.write_all(bytes.as_bytes()).await?;
        match stream.read_to_end(&mut answer).await {
            // Whoever closes without saying goodbye has said all the same.
            Err(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => Err(e.into()),
            _ => anyhow::Ok(()),
        }
    })?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| answer.clone())?;
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    // Nothing around the document but, it may be, the sizes of its chunks.
    let document = body.find('{').zip(body.rfind('}')).map(|(from, to)| &body[from..=to]);
    Ok((status, serde_json::from_str(document.with_context(|| answer.clone())?)?))
}

/// Whether policy let somebody do something.
fn may(out: &Output) -> Result<bool> {
    if out.status.success() {
        return Ok(true);
    }
    let said = text(out);
    ensure!(said.contains("\"denied\""), "{said}");
    Ok(false)
}

#[test]
fn people_sign_in_by_browser_and_by_device_and_have_the_roles_of_their_groups() -> Result<()> {
    let Some(world) = World::new("")? else { return Ok(()) };
    let out = world.falaj("sara")?.arg("status").output()?;
    ensure!(!out.status.success() && text(&out).contains("falaj login"), "{}", text(&out));
    let out = world.signs_in("sara", &[])?;
    ensure!(out.status.success(), "{}", text(&out));
    let login: Value = serde_json::from_slice(&out.stdout)?;
    ensure!(login["roles"] == json!(["data-scientist"]), "{login}");
    let id = login["identity"].as_str().context("an identity")?;
    ensure!(id.starts_with("spiffe://falaj.test/ae-on/ae-az/operator/sso-"), "{id}");
    let folder = world.federation.dir().join("login/sara");
    for file in ["cert.pem", "key.pem"] {
        let mode = fs::metadata(folder.join(file))?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{file}: {mode:o}");
    }
    ensure!(may(&world.falaj("sara")?.arg("status").output()?)?);
    ensure!(!may(&world.falaj("sara")?.args(["log", "entries"]).output()?)?, "reads the log");

    let out = world.signs_in("omar", &["--device"])?;
    ensure!(out.status.success(), "{}", text(&out));
    ensure!(may(&world.falaj("omar")?.args(["log", "entries"]).output()?)?);
    let bundle = world.federation.dir().join("omar.tar").display().to_string();
    ensure!(may(&world.falaj("omar")?.args(["log", "export", "-o", &bundle]).output()?)?);
    ensure!(!may(&world.falaj("omar")?.args(["site", "revocations"]).output()?)?, "revokes");

    // Somebody in a group that stands for nothing.
    let out = world.signs_in("guest", &[])?;
    let said = text(&out);
    ensure!(!out.status.success() && said.contains("stands for a role here"), "{said}");
    ensure!(world.reasons()?.contains("token_without_role"), "{:?}", world.reasons()?);
    let signed_in = world.federation.entries("operator.signed_in")?;
    ensure!(signed_in.len() == 2, "{signed_in:?}");
    for told in &signed_in {
        ensure!(told["entry"]["issuer"] == world.issuer.as_str(), "{told}");
        let entry = told["entry"].to_string();
        let names = ["sara", "omar", "sso-"];
        ensure!(!names.iter().any(|name| entry.contains(name)), "{entry}");
    }

    // Whoever is revoked is out at once, and does not come back by signing in.
    let out = world.federation.falaj(&["site", "revoke", id, "--reason", "left"])?;
    ensure!(out.status.success(), "{}", text(&out));
    let out = world.falaj("sara")?.arg("status").output()?;
    ensure!(!out.status.success() && text(&out).contains("revoked"), "{}", text(&out));
    let out = world.signs_in("sara", &[])?;
    ensure!(!out.status.success() && text(&out).contains("revoked"), "{}", text(&out));
    ensure!(world.federation.entries("operator.signed_in")?.len() == 2, "signed in");

    // Whoever signs out has nothing left.
    ensure!(world.falaj("omar")?.arg("logout").output()?.status.success());
    let left = fs::read_dir(world.federation.dir().join("login/omar"))?.count();
    ensure!(left == 0, "{left} files are left");
    world.federation.verified()?;
    Ok(())
}

#[test]
fn a_pipeline_signs_in_by_its_secret_and_a_token_is_one_certificate() -> Result<()> {
    let Some(world) = World::new("[roles.groups]\nauditor = []\n")? else { return Ok(()) };
    let out = world.pipeline("nightly", &format!("{SECRET}\n"), 0o600)?;
    ensure!(out.status.success(), "{}", text(&out));
    ensure!(may(&world.falaj("nightly")?.arg("sites").output()?)?);
    let export = ["log", "export", "-o", "x.tar"];
    ensure!(!may(&world.falaj("nightly")?.args(export).output()?)?);
    for (id, secret, mode, why) in [
        ("nightly", SECRET, 0o644, "chmod 600"),
        ("nightly", "another-secret", 0o600, "invalid_client"),
        ("stranger", "a-secret-of-somebody-else", 0o600, "stands for a role here"),
    ] {
        let out = world.pipeline(id, secret, mode)?;
        let said = text(&out);
        ensure!(!out.status.success() && said.contains(why), "{why}: {said}");
    }
    let token = world.token()?;
    let (key, _) = generate()?;
    let (status, answer) = world.comes(&world.issuer, &token, &key)?;
    ensure!(status == 201 && answer["roles"] == json!(["operator"]), "{status}: {answer}");
    let (other, _) = generate()?;
    let (status, answer) = world.comes(&world.issuer, &token, &other)?;
    ensure!(status == 401 && answer["detail"].to_string().contains("used"), "{answer}");
    let (status, answer) = world.comes("https://localhost:1", &world.token()?, &key)?;
    ensure!(status == 401 && answer["detail"].to_string().contains("issuer"), "{answer}");
    let (status, answer) = world.comes(&world.issuer, "no.token.", &key)?;
    ensure!(status == 401 && answer["code"] == "unidentified", "{status}: {answer}");
    // What is served there says so itself, and is refused by a problem like everything.
    let (status, api) = world.asks("GET /openapi.json")?;
    ensure!(status == 200 && api["paths"]["/api/v1/login"]["post"].is_object(), "{status}: {api}");
    let (status, answer) = world.asks("DELETE /api/v1/login")?;
    ensure!(status == 405 && answer["code"] == "method_not_allowed", "{status}: {answer}");
    // What `[roles]` says of a role's own word holds for those who sign in, too.
    let out = world.signs_in("omar", &[])?;
    ensure!(!out.status.success() && text(&out).contains("stands for a role"), "{}", text(&out));
    let words = ["token_used", "token_issuer", "unreadable_token", "token_without_role"];
    let reasons = world.reasons()?;
    ensure!(words.iter().all(|word| reasons.contains(*word)), "{reasons:?}");
    world.federation.verified()?;
    Ok(())
}

#[test]
fn while_the_provider_is_away_others_go_on_and_its_new_keys_are_found() -> Result<()> {
    let Some(mut world) = World::new("")? else { return Ok(()) };
    let token = world.token()?;
    let (key, _) = generate()?;
    world.provider.kill()?;
    let (status, answer) = world.comes(&world.issuer, &token, &key)?;
    ensure!(status == 503 && answer["detail"].to_string().contains(&world.issuer), "{answer}");
    let out = world.pipeline("nightly", SECRET, 0o600)?;
    ensure!(!out.status.success() && text(&out).contains("cannot talk to"), "{}", text(&out));
    ensure!(world.federation.falaj(&["status"])?.status.success(), "others go on");
    // It comes back with other keys, so that the token of before is nobody's.
    world.rotate("second")?;
    wait_for("the provider's keys", || {
        // Whoever comes as fast as this is told to wait now and then.
        let (status, answer) = world.comes(&world.issuer, &token, &key)?;
        ensure!([401, 429, 503].contains(&status), "{status}: {answer}");
        Ok((status == 401).then_some(()))
    })?;
    let signs_in = |world: &World| {
        wait_for("new keys to be found", || {
            let out = world.pipeline("nightly", SECRET, 0o600)?;
            let said = text(&out);
            let not_yet = ["no such key", "[busy]"].iter().any(|word| said.contains(word));
            ensure!(out.status.success() || not_yet, "{said}");
            Ok(out.status.success().then_some(()))
        })
    };
    signs_in(&world)?;
    world.rotate("third")?;
    signs_in(&world)?;
    ensure!(may(&world.falaj("nightly")?.arg("status").output()?)?);
    let reasons = world.reasons()?;
    let words = ["provider_unavailable", "token_key_unknown"];
    ensure!(words.iter().all(|word| reasons.contains(*word)), "{reasons:?}");
    world.federation.verified()?;
    Ok(())
}

/// Another authority vouches for the same place, as a bank's own would.
#[test]
fn nobody_but_the_authority_of_tokens_names_those_who_sign_in() -> Result<()> {
    let Some(world) = World::new("")? else { return Ok(()) };
    let dir = world.federation.dir();
    let other = dir.join("other").display().to_string();
    run("falaj-certs", &["init", &other, "--trust-domain", "falaj.test"])?;
    run("falaj-certs", &["issuer", &other, "ae-on/ae-az"])?;
    for name in ["eve", "sso-eve", "sso"] {
        run("falaj-certs", &["issue", &other, "operator", name, "--place", "ae-on/ae-az"])?;
    }
    let issuer = fs::read_to_string(dir.join("other/trust.toml"))?;
    let issuer = &issuer[issuer.find("[[issuer]]").context("an issuer")?..];
    // Its certificate comes over, and its key does not.
    let trust = world.federation.ca().join("trust.toml");
    fs::copy(dir.join("other/issuers/ae-on_ae-az/cert.pem"), trust.with_file_name("bank.pem"))?;
    let issuer = issuer.replace("issuers/ae-on_ae-az/cert.pem", "bank.pem");
    let both = format!("{}\n{issuer}", fs::read_to_string(&trust)?);
    let fresh = trust.with_extension("new");
    fs::write(&fresh, both)?;
    fs::rename(&fresh, &trust)?;
    wait_for("the trust configuration to be taken", || {
        Ok((!world.federation.entries("trust.loaded")?.is_empty()).then_some(()))
    })?;
    let rest = world.federation.addresses.context("started")?.rest;
    let asks = |name: &str| {
        let folder = Path::new(&other).join("operator").join(name);
        let mut command = Command::new(binary("falaj"));
        command.arg("--server").arg(format!("https://{rest}")).arg("--trust").arg(&trust);
        command.arg("--cert").arg(folder.join("cert.pem"));
        command.arg("--key").arg(folder.join("key.pem"));
        command.arg("status").output()
    };
    for name in ["eve", "sso"] {
        let out = asks(name)?;
        ensure!(out.status.success(), "{name}: {}", text(&out));
    }
    let out = asks("sso-eve")?;
    ensure!(!out.status.success() && text(&out).contains("sign in"), "{}", text(&out));
    ensure!(world.reasons()?.contains("reserved_name"), "{:?}", world.reasons()?);
    world.federation.verified()?;
    Ok(())
}
