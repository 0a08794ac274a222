//! Keys in a token, tried against SoftHSM (Debian's `softhsm2`); skipped aloud where it is not installed.
//!
//! SoftHSM learns from its environment where its tokens lie, so this is a program of its own: it makes a folder, and starts
//! itself again with that environment.

use anyhow::{Context as _, Result, bail, ensure};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::Mechanism,
    object::Attribute,
    session::{Session, UserType},
    types::AuthPin,
};
use falaj_certs::{
    ca::{Authority, LEAF_DAYS, Request},
    keys::{KeyAt, open_token},
    revocation::Crls,
    tls::{
        Credentials, CredentialsError, ServerExpectation, client_config, client_verifier,
        server_config,
    },
    token::{TokenError, TokenKey},
    trust::TrustStore,
};
use falaj_core::{id::Role, sign::SignError};
use rustls::{ClientConnection, Connection, HandshakeKind, ProtocolVersion, ServerConnection};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

/// Where Debian puts the module.
const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "4711-hush";
/// OID 1.3.101.112 as SoftHSM takes it: the curve's name.
const ED25519: [u8; 14] = *b"\x13\x0cedwards25519";

fn main() -> Result<()> {
    if let Some("inside") = std::env::args().nth(1).as_deref() {
        return inside(Path::new(&std::env::args().nth(2).context("a folder")?));
    }
    if !Path::new(MODULE).exists() {
        eprintln!("SKIPPED: there is no SoftHSM; `apt-get install -y softhsm2` mends that");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let conf = dir.path().join("softhsm2.conf");
    let tokens = dir.path().join("tokens");
    fs::create_dir(&tokens)?;
    fs::write(&conf, format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display()))?;
    for label in ["first", "second"] {
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "so-pin"])
            .env("SOFTHSM2_CONF", &conf)
            .output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let ended = Command::new(std::env::current_exe()?)
        .arg("inside")
        .arg(dir.path())
        .env("SOFTHSM2_CONF", &conf)
        .status()?;
    ensure!(ended.success(), "see above");
    Ok(())
}

type Test = fn(&World) -> Result<()>;

fn inside(dir: &Path) -> Result<()> {
    let world = World::new(dir)?;
    let tests: [(&str, Test); 8] = [
        ("a_token_signs_as_its_public_key_and_in_many_threads", signs),
        ("both_sides_of_a_handshake_have_their_keys_in_a_token", handshake),
        ("what_is_not_there_is_named", not_there),
        ("a_key_that_the_token_would_give_out_is_refused", given_out),
        ("names_that_mean_two_keys_are_refused_unless_the_id_tells_them_apart", twins),
        ("a_wrong_pin_is_tried_once", wrong_pin),
        ("a_token_that_was_away_signs_again_when_it_is_back", away),
        ("a_key_that_was_replaced_does_not_sign_for_the_one_before", replaced),
    ];
    for (name, test) in tests {
        test(&world).with_context(|| format!("test {name} ... FAILED"))?;
        println!("test {name} ... ok");
    }
    Ok(())
}

struct World {
    dir: PathBuf,
    pin: PathBuf,
}

fn secret(path: &Path, text: &str, mode: u32) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

impl World {
    fn new(dir: &Path) -> Result<Self> {
        let pin = dir.join("pin");
        secret(&pin, &format!("{PIN}\n"), 0o600)?;
        Ok(Self { dir: dir.to_owned(), pin })
    }

    fn key(&self, rest: &str) -> Result<TokenKey> {
        let pin = self.pin.display();
        Ok(format!("pkcs11:{rest}?module-path={MODULE}&pin-source={pin}").parse()?)
    }

    /// A session of the test's own, in which keys are made: `falaj` never does.
    fn session(token: &str) -> Result<Session> {
        let module = Pkcs11::new(MODULE)?;
        // Whoever was first has begun it.
        let _ = module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
        let slots = module.get_slots_with_initialized_token()?;
        let named = |slot: &&_| module.get_token_info(**slot).is_ok_and(|i| i.label() == token);
        let session = module.open_rw_session(*slots.iter().find(named).context("a token")?)?;
        // Another session of this process may have logged in.
        let _ = session.login(UserType::User, Some(&AuthPin::from(PIN)));
        Ok(session)
    }

    fn make(token: &str, label: &str, id: u8, extractable: bool) -> Result<()> {
        let session = Self::session(token)?;
        let names = [Attribute::Label(label.into()), Attribute::Id(vec![id])];
        let public =
            [vec![Attribute::Token(true), Attribute::EcParams(ED25519.to_vec())], names.to_vec()]
                .concat();
        let private = [
            vec![
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Sensitive(!extractable),
                Attribute::Extractable(extractable),
                Attribute::Sign(true),
            ],
            names.to_vec(),
        ]
        .concat();
        session.generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &public, &private)?;
        Ok(())
    }

    fn remove(token: &str, label: &str) -> Result<()> {
        let session = Self::session(token)?;
        for object in session.find_objects(&[Attribute::Label(label.into())])? {
            session.destroy_object(object)?;
        }
        Ok(())
    }
}

fn says<T>(opened: Result<T, TokenError>, words: &[&str]) -> Result<()> {
    let Err(e) = opened else { bail!("it was taken, and should say {words:?}") };
    let e = e.to_string();
    ensure!(words.iter().all(|word| e.contains(word)), "{e} does not say {words:?}");
    ensure!(!e.contains(PIN), "{e}");
    Ok(())
}

fn signs(world: &World) -> Result<()> {
    World::make("first", "site", 1, false)?;
    World::make("first", "log", 2, false)?;
    World::make("second", "site", 3, false)?;
    let keys = ["token=first;object=site", "token=first;object=log", "token=second;object=site"];
    let keys = keys.map(|rest| open_token(&world.key(rest)?).map_err(anyhow::Error::from));
    let [a, b, c] = keys;
    let keys = [a?, b?, c?];
    ensure!(keys[0].verifying_key() != keys[2].verifying_key());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8_u8)
            .map(|n| {
                let key = keys[usize::from(n) % keys.len()].clone();
                scope.spawn(move || -> Result<()> {
                    for i in 0..50_u8 {
                        let message = vec![i; usize::from(n) * 100];
                        let signature = key.sign(&message)?;
                        let signature = ed25519_dalek::Signature::from_bytes(&signature);
                        key.verifying_key().verify_strict(&message, &signature)?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|w| w.join().map_err(|_| anyhow::anyhow!("a panic"))?)
    })
}

fn handshake(world: &World) -> Result<()> {
    let ca = world.dir.join("ca");
    let authority = Authority::init(&ca, "falaj.test")?;
    authority.add_issuer(&"ae-on/ae-az".parse()?)?;
    let credentials = |role, name: &str, key: TokenKey| -> Result<Credentials> {
        let request = Request {
            role,
            name: name.into(),
            place: "ae-on/ae-az".parse()?,
            days: LEAF_DAYS,
            dns: Vec::new(),
        };
        let dir = authority.issue_for(&request, None, open_token(&key)?.verifying_key())?;
        ensure!(!dir.join("key.pem").exists(), "the key is in the token");
        Ok(Credentials::load(&dir.join("cert.pem"), KeyAt::Token(key))?)
    };
    let site = credentials(Role::Site, "h", world.key("token=first;object=site")?)?;
    let coordinator = credentials(Role::Coordinator, "c", world.key("token=first;object=log")?)?;
    site.ready()?;
    // The key of the one is not that of the other's certificate.
    let cert = ca.join("site/h/cert.pem");
    let wrong = Credentials::load(&cert, KeyAt::Token(world.key("token=second;object=site")?));
    let Err(e @ CredentialsError::Mismatch { .. }) = wrong else { bail!("taken") };
    ensure!(e.to_string().contains("key `site` in token `second`"), "{e}");
    let trust = TrustStore::load(&authority.trust_path())?;
    let expect = ServerExpectation::coordinator(&["ae-on/ae-az"]);
    let client = client_config(&site, &trust, &expect, &["h2"])?;
    let verifier = client_verifier(&trust, &Crls::default())?;
    let server = server_config(&coordinator, verifier, &["h2"])?;
    let mut client = Connection::from(ClientConnection::new(Arc::new(client), "c".try_into()?)?);
    let mut server = Connection::from(ServerConnection::new(Arc::new(server))?);
    for _ in 0..10 {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes)?;
        server.read_tls(&mut &bytes[..])?;
        server.process_new_packets()?;
        let mut bytes = Vec::new();
        server.write_tls(&mut bytes)?;
        client.read_tls(&mut &bytes[..])?;
        client.process_new_packets()?;
    }
    ensure!(!client.is_handshaking() && !server.is_handshaking());
    ensure!(server.protocol_version() == Some(ProtocolVersion::TLSv1_3));
    ensure!(server.handshake_kind() == Some(HandshakeKind::Full));
    let shown = server.peer_certificates().and_then(<[_]>::first).context("a certificate")?;
    ensure!(shown.as_ref() == site.certificate());
    Ok(())
}

fn not_there(world: &World) -> Result<()> {
    let open = |rest: &str| world.key(rest).map(|key| open_token(&key));
    says(open("token=third;object=site")?, &["`third`", "the module sees `", "`first`", MODULE])?;
    says(open("token=first;object=none")?, &["`none`", "`first`", "no private Ed25519 key"])?;
    says(open("token=first;object=site;id=%09")?, &["no private Ed25519 key"])?;
    says(open("token=first;manufacturer=Somebody;object=site")?, &["no such token"])?;
    let module = |path: &Path| -> Result<_> {
        let pin = world.pin.display();
        let path = path.display();
        let uri = format!("pkcs11:token=first;object=site?module-path={path}&pin-source={pin}");
        Ok(open_token(&uri.parse()?))
    };
    let none = world.dir.join("none.so");
    says(module(&none)?, &["none.so", "No such file"])?;
    fs::write(&none, "no library")?;
    says(module(&none)?, &["none.so"])?;
    let pin = world.dir.join("loose");
    let uri = |pin: &Path| {
        format!("pkcs11:token=second;object=site?module-path={MODULE}&pin-source={}", pin.display())
    };
    says(open_token(&uri(&pin).parse()?), &["its PIN", "loose", "No such file"])?;
    secret(&pin, PIN, 0o640)?;
    says(open_token(&uri(&pin).parse()?), &["its PIN", "mode 640", "chmod 600"])?;
    secret(&pin, PIN, 0o600)?;
    open_token(&uri(&pin).parse()?)?;
    Ok(())
}

fn given_out(world: &World) -> Result<()> {
    World::make("second", "loose", 5, true)?;
    let opened = open_token(&world.key("token=second;object=loose")?);
    says(opened, &["would give the key out", "not extractable"])
}

fn twins(world: &World) -> Result<()> {
    World::make("second", "twin", 7, false)?;
    World::make("second", "twin", 8, false)?;
    says(open_token(&world.key("token=second;object=twin")?), &["2 private keys", "`id`"])?;
    let one = open_token(&world.key("token=second;object=twin;id=%07")?)?;
    let other = open_token(&world.key("token=second;id=%08")?)?;
    ensure!(one.verifying_key() != other.verifying_key());
    Ok(())
}

/// Nobody else may be logged in for this: the token would not look at the PIN.
fn wrong_pin(world: &World) -> Result<()> {
    secret(&world.pin, "12345", 0o600)?;
    let key = world.key("token=first;object=site")?;
    says(open_token(&key), &["`first`", "refuses the PIN", "pin"])?;
    says(open_token(&key), &["`first`", "not tried again", "correct the file"])?;
    secret(&world.pin, PIN, 0o600)?;
    open_token(&key)?;
    Ok(())
}

fn away(world: &World) -> Result<()> {
    let key = open_token(&world.key("token=first;object=site")?)?;
    let (tokens, elsewhere) = (world.dir.join("tokens"), world.dir.join("drawer"));
    fs::rename(&tokens, &elsewhere)?;
    fs::create_dir(&tokens)?;
    let SignError(e) = key.sign(b"x").err().context("it signs without its token")?;
    ensure!(e.contains("key `site` in token `first`") && e.contains(MODULE), "{e}");
    ensure!(key.sign(b"x").is_err(), "it is still away");
    fs::remove_dir(&tokens)?;
    fs::rename(&elsewhere, &tokens)?;
    let signature = ed25519_dalek::Signature::from_bytes(&key.sign(b"y")?);
    Ok(key.verifying_key().verify_strict(b"y", &signature)?)
}

fn replaced(world: &World) -> Result<()> {
    let key = open_token(&world.key("token=second;object=site")?)?;
    World::remove("second", "site")?;
    let SignError(e) = key.sign(b"x").err().context("it signs with a key that is gone")?;
    ensure!(e.contains("`site`"), "{e}");
    World::make("second", "site", 3, false)?;
    let SignError(e) = key.sign(b"x").err().context("another key signs in its name")?;
    ensure!(e.contains("another key has its name"), "{e}");
    Ok(())
}
