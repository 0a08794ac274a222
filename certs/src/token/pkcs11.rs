//! Signing in a token, over PKCS#11: the key never comes out of it.
//!
//! One key has one session, and a module does one thing at a time. A call that fails is tried twice more, the second time with
//! the module begun anew, so that a token that was away and is back is found again. A PIN that was refused is not tried a
//! second time until its file changes: tokens lock themselves.
//!
//! A token may take long, and one that is away longer. Whoever signs waits; the runtime that asked goes on meanwhile.

use super::{TokenError, TokenKey};
use crate::keys::read_secret;
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    mechanism::{
        Mechanism,
        eddsa::{EddsaParams, EddsaSignatureScheme},
    },
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::{Slot, TokenInfo},
    types::AuthPin,
};
use ed25519_dalek::{Signature, VerifyingKey};
use falaj_core::{
    id::Digest,
    sign::{SignError, SignKey},
};
use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::block_in_place,
};
use zeroize::Zeroizing;

/// What a token is asked to sign when it is opened: it shows that it can.
const PROBE: &[u8] = b"falaj/key/probe/v1";
/// The tag and length of 32 bytes in DER, which most tokens put before a point of the curve.
const POINT_HEADER: [u8; 2] = [0x04, 32];

/// Modules that this process has loaded: each is begun once, whoever uses it.
static MODULES: Mutex<BTreeMap<PathBuf, Arc<Mutex<Module>>>> = Mutex::new(BTreeMap::new());

/// A module, and which beginning of it this is: sessions of an earlier one are gone.
#[derive(Default)]
struct Module {
    begun: Option<Pkcs11>,
    generation: u64,
    /// Digests of PINs that tokens refused.
    refused: Vec<Digest>,
}

/// A session with the key in it.
struct Open {
    generation: u64,
    session: Session,
    key: ObjectHandle,
}

/// A key in a token.
pub struct TokenSigner {
    at: TokenKey,
    public: VerifyingKey,
    module: Arc<Mutex<Module>>,
    open: Mutex<Option<Open>>,
}

impl fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSigner({})", self.at)
    }
}

impl Module {
    fn begin(&mut self, at: &TokenKey) -> Result<&Pkcs11, TokenError> {
        if self.begun.is_none() {
            let failed = |e: Error| TokenError::Module(at.clone(), e.to_string());
            let module = Pkcs11::new(at.module()).map_err(failed)?;
            let threads = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
            match module.initialize(threads) {
                Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
                Err(e) => return Err(failed(e)),
            }
            self.begun = Some(module);
            self.generation += 1;
        }
        let none = || TokenError::Module(at.clone(), "the module did not begin".into());
        self.begun.as_ref().ok_or_else(none)
    }

    /// Ends the module: what is asked next begins it anew, and finds tokens that were not there before.
    fn end(&mut self) {
        if let Some(module) = self.begun.take() {
            // One that fails to end fails to begin, which is said then.
            let _ = module.finalize();
        }
    }

    fn open(&mut self, at: &TokenKey) -> Result<(Open, VerifyingKey), TokenError> {
        let failed = |e: Error| TokenError::Module(at.clone(), e.to_string());
        let module = self.begin(at)?.clone();
        let (slot, info) = find_token(&module, at)?;
        // Sessions are closed by hand: a number of one that is gone may be another's by now.
        let session = module.open_ro_session_no_drop(slot).map_err(failed)?;
        let found = self.log_in(&session, &info, at).and_then(|()| {
            let key = find(&session, at, ObjectClass::PRIVATE_KEY, "private")?;
            let public = public_key(&session, at)?;
            is_kept(&session, at, key)?;
            Ok((key, public))
        });
        match found {
            Ok((key, public)) => Ok((Open { generation: self.generation, session, key }, public)),
            Err(e) => {
                let _ = session.close();
                Err(e)
            }
        }
    }

    fn log_in(
        &mut self,
        session: &Session,
        info: &TokenInfo,
        at: &TokenKey,
    ) -> Result<(), TokenError> {
        let refused = |what: &str| TokenError::Login(at.clone(), what.to_owned());
        if !info.login_required() {
            return Ok(());
        }
        if info.user_pin_locked() {
            return Err(refused("the token's PIN is locked: its security officer can set it anew"));
        }
        if info.user_pin_final_try() {
            return Err(refused(
                "one wrong PIN more locks the token, so none is tried: log in once by hand",
            ));
        }
        let pin = read_secret(at.pin_file()).map_err(|e| TokenError::pin(at, &e))?;
        let pin = std::str::from_utf8(&pin)
            .map_err(|_| TokenError::Pin(at.clone(), "it is not UTF-8".into()))?
            .trim_end_matches(['\n', '\r']);
        let module = at.module().as_os_str().as_encoded_bytes();
        let parts = [module, info.serial_number().as_bytes(), pin.as_bytes()];
        let tried = Digest::of(&Zeroizing::new(parts.join(&0)));
        if self.refused.contains(&tried) {
            return Err(refused(&format!(
                "the token refused the PIN in {} before, so it is not tried again: correct the file",
                at.pin_file().display()
            )));
        }
        match session.login(UserType::User, Some(&AuthPin::from(pin))) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(Error::Pkcs11(
                RvError::PinIncorrect | RvError::PinLenRange | RvError::PinInvalid,
                _,
            )) => {
                self.refused.push(tried);
                Err(refused(&format!("the token refuses the PIN in {}", at.pin_file().display())))
            }
            Err(e) => Err(TokenError::Module(at.clone(), e.to_string())),
        }
    }
}

/// The one token that a URI names.
fn find_token(module: &Pkcs11, at: &TokenKey) -> Result<(Slot, TokenInfo), TokenError> {
    let failed = |e: Error| TokenError::Module(at.clone(), e.to_string());
    let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found);
    let (mut matching, mut seen) = (Vec::new(), Vec::new());
    for slot in module.get_slots_with_initialized_token().map_err(failed)? {
        // One token that fails is not the end of the others.
        let Ok(info) = module.get_token_info(slot) else { continue };
        if is(&at.token, info.label())
            && is(&at.serial, info.serial_number())
            && is(&at.manufacturer, info.manufacturer_id())
            && is(&at.model, info.model())
        {
            matching.push((slot, info));
        } else {
            seen.push(format!("`{}`", info.label()));
        }
    }
    match (matching.pop(), matching.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(_), false) => {
            let what = "more than one token has that name: add its `serial` to the URI";
            Err(TokenError::Module(at.clone(), what.into()))
        }
        (None, _) if seen.is_empty() => {
            Err(TokenError::Module(at.clone(), "the module sees no token".into()))
        }
        (None, _) => {
            let what = format!("no such token is there; the module sees {}", seen.join(", "));
            Err(TokenError::Module(at.clone(), what))
        }
    }
}

/// The one object of a class that a URI names.
fn find(
    session: &Session,
    at: &TokenKey,
    class: ObjectClass,
    word: &str,
) -> Result<ObjectHandle, TokenError> {
    let mut wanted = vec![Attribute::Class(class), Attribute::KeyType(KeyType::EC_EDWARDS)];
    wanted.extend(at.object.as_ref().map(|label| Attribute::Label(label.clone().into())));
    wanted.extend(at.id.clone().map(Attribute::Id));
    let found =
        session.find_objects(&wanted).map_err(|e| TokenError::Module(at.clone(), e.to_string()))?;
    match found[..] {
        [one] => Ok(one),
        [] => Err(TokenError::Key(
            at.clone(),
            format!("the token has no {word} Ed25519 key of that name"),
        )),
        [..] => Err(TokenError::Key(
            at.clone(),
            format!(
                "the token has {} {word} keys of that name: add the `id` to the URI",
                found.len()
            ),
        )),
    }
}

fn public_key(session: &Session, at: &TokenKey) -> Result<VerifyingKey, TokenError> {
    let key = find(session, at, ObjectClass::PUBLIC_KEY, "public")?;
    let found = session
        .get_attributes(key, &[AttributeType::EcPoint])
        .map_err(|e| TokenError::Module(at.clone(), e.to_string()))?;
    let point = found.iter().find_map(|a| match a {
        Attribute::EcPoint(point) => {
            Some(point.strip_prefix(&POINT_HEADER).filter(|p| p.len() == 32).unwrap_or(point))
        }
        _ => None,
    });
    let key = point.and_then(|p| <&[u8; 32]>::try_from(p).ok()).map(VerifyingKey::from_bytes);
    match key {
        Some(Ok(key)) => Ok(key),
        _ => Err(TokenError::Key(at.clone(), "its public half is no Ed25519 key".into())),
    }
}

/// A key that the token would give out is no better off there than in a file.
fn is_kept(session: &Session, at: &TokenKey, key: ObjectHandle) -> Result<(), TokenError> {
    let asked = [AttributeType::Extractable, AttributeType::Sensitive];
    let found = session
        .get_attributes(key, &asked)
        .map_err(|e| TokenError::Module(at.clone(), e.to_string()))?;
    let kept =
        |a: &Attribute| matches!(a, Attribute::Extractable(false) | Attribute::Sensitive(true));
    if found.len() == asked.len() && found.iter().all(kept) {
        Ok(())
    } else {
        let what =
            "the token would give the key out: make one that is sensitive and not extractable";
        Err(TokenError::Key(at.clone(), what.into()))
    }
}

impl TokenSigner {
    /// Opens a key, which signs once to show that it can.
    ///
    /// # Errors
    /// [`TokenError`], with token, object and module.
    pub fn open(at: &TokenKey) -> Result<Self, TokenError> {
        let module = locked(&MODULES).entry(at.module().to_owned()).or_default().clone();
        let opened = {
            let mut module = locked(&module);
            module.open(at).or_else(|e| {
                if matches!(e, TokenError::Module(..)) {
                    module.end();
                    module.open(at)
                } else {
                    Err(e)
                }
            })
        };
        let (open, public) = opened?;
        let this = Self { at: at.clone(), public, module, open: Mutex::new(Some(open)) };
        this.signed(PROBE)?;
        Ok(this)
    }

    fn signed(&self, message: &[u8]) -> Result<[u8; 64], TokenError> {
        let mut module = locked(&self.module);
        let mut open = locked(&self.open);
        let mut last = None;
        for attempt in 0..3 {
            if attempt == 2 {
                module.end();
            }
            match self.sign_once(&mut module, &mut open, message) {
                Ok(signature) => return Ok(signature),
                Err(e @ TokenError::Module(..)) => {
                    close(&module, &mut open);
                    last = Some(e);
                }
                Err(e) => return Err(e),
            }
        }
        Err(last.unwrap_or_else(|| TokenError::Module(self.at.clone(), "not tried".into())))
    }

    fn sign_once(
        &self,
        module: &mut Module,
        open: &mut Option<Open>,
        message: &[u8],
    ) -> Result<[u8; 64], TokenError> {
        let current = module.begun.is_some()
            && open.as_ref().is_some_and(|open| open.generation == module.generation);
        if !current {
            let (fresh, public) = module.open(&self.at)?;
            *open = Some(fresh);
            if public != self.public {
                let what = "another key has its name now: start again to use it";
                return Err(TokenError::Key(self.at.clone(), what.into()));
            }
        }
        let failed = |what: String| TokenError::Module(self.at.clone(), what);
        let open = open.as_ref().ok_or_else(|| failed("no session".into()))?;
        let eddsa = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519));
        let signature =
            open.session.sign(&eddsa, open.key, message).map_err(|e| failed(e.to_string()))?;
        // A device that errs must not put its error on the wire: a wrong signature can betray the key.
        let good = Signature::from_slice(&signature)
            .is_ok_and(|s| self.public.verify_strict(message, &s).is_ok());
        let signature = <[u8; 64]>::try_from(&signature[..]).ok().filter(|_| good);
        signature.ok_or_else(|| failed("the token signed wrongly".into()))
    }
}

/// Does what may take long. Where that is a worker of a runtime with several, another thread takes its place meanwhile: what else
/// is to be done does not wait for a token, also not where signing cannot be waited for, as in a handshake.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    if matches!(flavor, Ok(RuntimeFlavor::MultiThread)) { block_in_place(work) } else { work() }
}

/// Ends a session, unless the module has begun anew since.
fn close(module: &Module, open: &mut Option<Open>) {
    if let Some(open) = open.take()
        && module.begun.is_some()
        && open.generation == module.generation
    {
        // One that cannot be closed is gone.
        let _ = open.session.close();
    }
}

impl SignKey for TokenSigner {
    fn verifying_key(&self) -> VerifyingKey {
        self.public
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        aside(|| self.signed(message)).map_err(|e| SignError(e.to_string()))
    }
}

impl Drop for TokenSigner {
    fn drop(&mut self) {
        let module = self.module.clone();
        let module = locked(&module);
        let mut open = locked(&self.open).take();
        close(&module, &mut open);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, time::Duration};
    use tokio::runtime::Builder;

    #[test]
    fn a_runtime_goes_on_while_its_only_worker_waits_for_a_token() {
        let runtime = Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        let (begun, begins) = mpsc::channel();
        let (done, hears) = mpsc::channel();
        // It waits for what the task after it does; nobody else could do that.
        let signing = runtime.spawn(async move {
            aside(|| {
                begun.send(()).expect("somebody hears");
                hears.recv_timeout(Duration::from_mins(1))
            })
        });
        begins.recv_timeout(Duration::from_mins(1)).expect("it has begun");
        let other = runtime.spawn(async move { done.send(7) });
        runtime.block_on(other).expect("it ran").expect("somebody hears");
        assert_eq!(runtime.block_on(signing).expect("it ran"), Ok(7));
        // Where there is no runtime, or one of a single thread, it is just done.
        assert_eq!(aside(|| 1), 1);
        let single = Builder::new_current_thread().build().expect("a runtime");
        assert_eq!(single.block_on(async { aside(|| 2) }), 2);
    }
}
