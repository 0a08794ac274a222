//! Asks the TPM of this machine for a quote: the one command that the agent needs of the hundred that there are, so that neither a
//! TPM library nor a daemon has to be installed (docs/adr/0011).
//!
//! Commands and answers are those of the TPM 2.0 Library, Part 3, as the kernel's `/dev/tpmrm0` takes them. A TPM in software
//! (`swtpm socket`) takes the same on a local socket.

use crate::config::TpmConfig;
use falaj_core::{
    id::Digest,
    tpm::{BYTES_MAX, REGISTERS},
};
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    fs::File, io, os::unix::net::UnixStream, path::PathBuf, sync::Arc, thread, time::Duration,
};
use tokio::sync::{Semaphore, oneshot};

/// A TPM that has not answered for so long does not answer: a signature takes a slow one two seconds, and it may serve others first.
const PATIENCE: Duration = Duration::from_secs(10);
/// No TPM's answer is longer.
const ANSWER_BYTES_MAX: usize = 4_096;
/// Tag, length and code: how each answer begins.
const HEAD_BYTES: usize = 10;

const SESSIONS: u16 = 0x8002;
const QUOTE: u32 = 0x0000_0158;
/// A session that is none: the key is used with its authorisation value, which is empty.
const PASSWORD: u32 = 0x4000_0009;
const SHA256: u16 = 0x000b;
const NONE: u16 = 0x0010;

/// Where a TPM is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The kernel's: `/dev/tpmrm0`.
    File(PathBuf),
    /// The local socket of a TPM in software.
    Socket(PathBuf),
}

impl Default for Device {
    fn default() -> Self {
        Self::File("/dev/tpmrm0".into())
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (make, path): (fn(PathBuf) -> Self, _) = match text.strip_prefix("swtpm:path=") {
            Some(path) => (Self::Socket, path),
            None => (Self::File, &*text),
        };
        if !path.starts_with('/') {
            let what = "write `/dev/tpmrm0`, or `swtpm:path=` and the whole path of a socket";
            return Err(D::Error::custom(format!("`{text}` is no TPM: {what}")));
        }
        Ok(make(path.into()))
    }
}

/// A persistent handle, under which a TPM keeps a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(u32);

impl<'de> Deserialize<'de> for Handle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = text.strip_prefix("0x").and_then(|n| u32::from_str_radix(n, 16).ok());
        let persistent = number.filter(|n| n >> 24 == 0x81).map(Self);
        persistent.ok_or_else(|| {
            let what = "write what `tpm2_evictcontrol` was given, for example `0x81010002`";
            D::Error::custom(format!("`{text}` is no persistent handle: {what}"))
        })
    }
}

/// Why there is no quote.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// It cannot be spoken to.
    #[error(
        "the TPM at {0} cannot be spoken to: is it there, and may this account read and write it?"
    )]
    Away(PathBuf, #[source] io::Error),
    /// It does not answer.
    #[error("the TPM at {0} has not answered for {PATIENCE:?}")]
    Slow(PathBuf),
    /// It refuses.
    #[error(
        "the TPM refuses a quote by the key {1:#010x} ({0:#05x}; `tpm2_rc_decode {0:#05x}` says what that is): is a restricted signing key there that wants no authorisation value?"
    )]
    Refused(u32, u32),
    /// What it says is no answer.
    #[error("the TPM answers what is no quote")]
    Malformed,
}

/// A quote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// What the TPM says (`TPMS_ATTEST`).
    pub attest: Vec<u8>,
    /// Its signature (`TPMT_SIGNATURE`).
    pub signature: Vec<u8>,
}

/// The TPM of this machine.
pub struct Tpm {
    config: TpmConfig,
    /// It is asked one thing at a time: whoever does not get an answer does not ask on and on.
    free: Arc<Semaphore>,
}

impl Tpm {
    /// The TPM that a configuration names. It is not spoken to before a quote is wanted.
    #[must_use]
    pub fn new(config: &TpmConfig) -> Self {
        Self { config: config.clone(), free: Arc::new(Semaphore::new(1)) }
    }

    /// Asks for a quote over the registers that the configuration names.
    ///
    /// # Errors
    /// [`TpmError`].
    pub async fn quote(&self, asked: &Digest) -> Result<Given, TpmError> {
        let TpmConfig { device, key, pcrs } = &self.config;
        let (Device::File(path) | Device::Socket(path)) = device;
        let slow = || TpmError::Slow(path.clone());
        let busy = self.free.clone().try_acquire_owned().map_err(|_| slow())?;
        let (command, device) = (command(*key, pcrs, asked), device.clone());
        let (answer, answered) = oneshot::channel();
        // No thread of the runtime's: a device that hangs would keep the agent from ending.
        let asking = thread::Builder::new().name("tpm".into()).spawn(move || {
            // Nobody waits any more.
            let _ = answer.send(transmit(&device, &command));
            drop(busy);
        });
        let away = |e: io::Error| TpmError::Away(path.clone(), e);
        asking.map_err(away)?;
        let answer = tokio::time::timeout(PATIENCE, answered).await;
        given(&answer.ok().and_then(Result::ok).ok_or_else(slow)?.map_err(away)?, *key)
    }
}

/// `TPM2_Quote`.
fn command(Handle(key): Handle, pcrs: &[u8], asked: &Digest) -> Vec<u8> {
    let mut registers = [0; REGISTERS as usize / 8];
    for n in pcrs {
        registers[usize::from(n / 8)] |= 1 << (n % 8);
    }
    let mut command = SESSIONS.to_be_bytes().to_vec();
    command.extend([0; 4]);
    command.extend(QUOTE.to_be_bytes());
    command.extend(key.to_be_bytes());
    // The session's length; then no nonce, no attributes, no value.
    command.extend(9_u32.to_be_bytes());
    command.extend(PASSWORD.to_be_bytes());
    command.extend([0; 5]);
    command.extend(32_u16.to_be_bytes());
    command.extend(asked.0);
    // By the key's own scheme.
    command.extend(NONE.to_be_bytes());
    command.extend(1_u32.to_be_bytes());
    command.extend(SHA256.to_be_bytes());
    command.push(REGISTERS / 8);
    command.extend(registers);
    let length = u32::try_from(command.len()).expect("invariant: a command is short");
    command[2..6].copy_from_slice(&length.to_be_bytes());
    command
}

/// Sends a command, and gives the whole answer. Blocks.
fn transmit(device: &Device, command: &[u8]) -> io::Result<Vec<u8>> {
    match device {
        Device::File(path) => exchange(File::options().read(true).write(true).open(path)?, command),
        Device::Socket(path) => {
            let socket = UnixStream::connect(path)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            exchange(socket, command)
        }
    }
}

fn exchange(mut device: impl io::Read + io::Write, command: &[u8]) -> io::Result<Vec<u8>> {
    // A device takes a command in one piece, or not at all, and a short answer is not asked for in pieces either.
    device.write_all(command)?;
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    let mut have = 0;
    while !is_whole(&answer[..have])? {
        match device.read(&mut answer[have..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => have += read,
        }
    }
    answer.truncate(have);
    Ok(answer)
}

/// Whether an answer is there to its end, by its own length.
fn is_whole(answer: &[u8]) -> io::Result<bool> {
    let Some(length) = answer.get(2..6) else { return Ok(false) };
    let length = u32::from_be_bytes(length.try_into().expect("invariant: four bytes"));
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if !(HEAD_BYTES..=ANSWER_BYTES_MAX).contains(&length) || answer.len() > length {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer of no such length"));
    }
    Ok(answer.len() == length)
}

/// What a whole answer gives.
fn given(answer: &[u8], Handle(key): Handle) -> Result<Given, TpmError> {
    let (head, body) = answer.split_at_checked(HEAD_BYTES).ok_or(TpmError::Malformed)?;
    let code = u32::from_be_bytes([head[6], head[7], head[8], head[9]]);
    if code != 0 {
        return Err(TpmError::Refused(code, key));
    }
    let parts = || {
        let (length, rest) = body.split_first_chunk::<4>()?;
        // What follows the parameters is the session's.
        let parameters = rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        let (length, rest) = parameters.split_first_chunk::<2>()?;
        let (attest, signature) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        let short = |part: &[u8]| (1..=BYTES_MAX).contains(&part.len());
        (short(attest) && short(signature))
            .then(|| Given { attest: attest.to_vec(), signature: signature.to_vec() })
    };
    parts().filter(|_| head[..2] == SESSIONS.to_be_bytes()).ok_or(TpmError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Handle = Handle(0x8101_0002);

    fn answer(code: u32, parameters: &[u8]) -> Vec<u8> {
        let mut whole = SESSIONS.to_be_bytes().to_vec();
        whole.extend([0; 4]);
        whole.extend(code.to_be_bytes());
        whole.extend(u32::try_from(parameters.len()).expect("short").to_be_bytes());
        whole.extend(parameters);
        whole.extend([0, 0, 1, 0, 0]);
        let length = u32::try_from(whole.len()).expect("short").to_be_bytes();
        whole[2..6].copy_from_slice(&length);
        whole
    }

    #[test]
    fn a_quote_is_asked_for_in_the_tpms_own_words() {
        let command = command(KEY, &[0, 7, 10], &Digest([0xee; 32]));
        let wanted = format!(
            "8002000000490000015881010002000000094000000900000000000020{}0010\
                              00000001000b03810400",
            "ee".repeat(32)
        );
        assert_eq!(hex::encode(command), wanted);
    }

    #[test]
    fn an_answer_that_is_cut_short_or_refuses_gives_no_quote() {
        let whole = answer(0, &[0, 2, 1, 2, 7, 8, 9]);
        let good = Given { attest: vec![1, 2], signature: vec![7, 8, 9] };
        assert_eq!(given(&whole, KEY).ok(), Some(good));
        for n in 0..whole.len() {
            assert!(!is_whole(&whole[..n]).expect("it begins well"), "{n}");
        }
        assert!(is_whole(&whole).expect("whole"));
        assert!(is_whole(&[&whole[..], &[0]].concat()).is_err());
        for length in [9_u32, 4_097, u32::MAX] {
            let mut wrong = whole.clone();
            wrong[2..6].copy_from_slice(&length.to_be_bytes());
            assert!(is_whole(&wrong).is_err(), "{length}");
        }
        let said = given(&answer(0x18b, &[]), KEY).expect_err("refused").to_string();
        assert!(said.contains("0x81010002 (0x18b;"), "{said}");
        for broken in [&[][..], &[0], &[0, 3, 1, 2], &[0, 2, 1, 2], &[0, 0, 7]] {
            assert!(matches!(given(&answer(0, broken), KEY), Err(TpmError::Malformed)));
        }
        let mut other = whole.clone();
        other[1] = 1;
        assert!(matches!(given(&other, KEY), Err(TpmError::Malformed)));
        let long = [&[0x04, 0x01][..], &[1; 1_025], &[2]].concat();
        assert!(matches!(given(&answer(0, &long), KEY), Err(TpmError::Malformed)));
    }

    #[test]
    fn what_is_no_tpm_and_what_is_no_handle_is_refused() {
        let read = |device: &str, key: &str| {
            toml::from_str::<TpmConfig>(&format!("device = \"{device}\"\nkey = \"{key}\""))
        };
        let good = read("swtpm:path=/run/tpm", "0x81010002").expect("a TPM");
        assert_eq!((good.device, good.key), (Device::Socket("/run/tpm".into()), KEY));
        assert_eq!(good.pcrs, [0, 2, 4, 7]);
        assert_eq!(
            toml::from_str::<TpmConfig>("key = \"0x81010002\"").expect("a TPM").device,
            Device::default()
        );
        for (device, key, why) in [
            ("swtpm:port=2321", "0x81010002", "is no TPM"),
            ("tpmrm0", "0x81010002", "is no TPM"),
            ("/dev/tpmrm0", "0x80000001", "no persistent handle"),
            ("/dev/tpmrm0", "81010002", "no persistent handle"),
        ] {
            let said = read(device, key).expect_err("refused").to_string();
            assert!(said.contains(why), "{said}");
        }
    }
}
