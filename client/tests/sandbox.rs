//! The agent's sandbox, entered by the program itself: what is refused, and what still works.

use serde_json::Value;
use std::{error::Error, fs, process::Command};

/// What an attempt comes to, in a sandbox for a coordinator with this address, or for training a study alone.
fn checked(address: &str, alone: bool) -> Result<(Value, bool), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    for name in ["identity", "records", "state", "issuers", "devices"] {
        fs::create_dir(at(name))?;
    }
    fs::write(at("records/records.csv"), "a,b\n1,2\n")?;
    // An issuer's certificate may lie outside of the folder of the file that names it.
    let trust = format!(
        "trust_domain = \"falaj.test\"\n[[issuer]]\ncert = \"../issuers/ca.pem\"\nspki_sha256 = \"{}\"\nplaces = [\"ae-on/*\"]\n",
        "0".repeat(64)
    );
    fs::write(at("identity/trust.toml"), trust)?;
    fs::write(at("issuers/ca.pem"), "a certificate")?;
    fs::write(at("devices/tpm"), "")?;
    let tpm = at("devices/tpm");
    let config = format!(
        "[identity]\ncert = \"identity/cert.pem\"\nkey = \"identity/key.pem\"\ntrust = \"identity/trust.toml\"\n\
         [coordinator]\naddress = \"{address}\"\n[policy]\ncoordinator_places = [\"ae-on/*\"]\n\
         [[dataset]]\nname = \"d\"\npath = \"records\"\nepsilon_limit = 1.0\ndelta = 1e-5\n\
         [train]\ndevice = \"cpu\"\n[state]\ndir = \"state\"\n[sandbox]\nmode = \"required\"\n\
         [tpm]\ndevice = \"{}\"\nkey = \"0x81010002\"\n",
        tpm.display()
    );
    fs::write(at("agent.toml"), config)?;
    // It lies among nothing else that is needed.
    fs::create_dir(at("asked"))?;
    fs::write(at("asked/study.yaml"), "study: d\n")?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_falaj-agent"));
    command.args(["sandbox", "check", "--json", "--config"]).arg(at("agent.toml"));
    if alone {
        command.arg("--study").arg(at("asked/study.yaml"));
    }
    let done = command.output()?;
    let said = serde_json::from_slice(&done.stdout)
        .map_err(|e| format!("{e}: {}", String::from_utf8_lossy(&done.stderr)))?;
    Ok((said, done.status.success()))
}

/// Whether this kernel has all that is needed; where it has not, that is said.
fn is_whole(said: &Value) -> bool {
    let missing = said["missing"].as_array().is_none_or(Vec::is_empty);
    if !missing {
        eprintln!("SKIPPED in part: this kernel lacks {}", said["missing"]);
    }
    missing
}

#[test]
fn nothing_gets_out_of_the_agent_and_what_it_needs_still_works() -> Result<(), Box<dyn Error>> {
    for (address, alone, datagrams) in [
        ("127.0.0.1:8440", false, false),
        ("coordinator.example:8440", false, true),
        // Who trains alone speaks to nobody: no name is resolved, and no TPM is asked.
        ("coordinator.example:8440", true, false),
    ] {
        let (said, ok) = checked(address, alone)?;
        let probes = said["probes"].as_array().ok_or("no probes")?;
        assert!(probes.len() >= 15, "{said}");
        let (mut issuers, mut around, mut devices, mut studies) = (0, 0, 0, 0);
        for probe in probes {
            let what = probe["tried"].as_str().ok_or("no words")?;
            // Files and ports need a kernel with Landlock, calls do not.
            let calls = ["socket", "program", "datagram", "fast open"];
            let of_calls = calls.iter().any(|word| what.contains(word));
            if is_whole(&said) || of_calls {
                assert_eq!(probe["right"], true, "{address}: {probe}");
            }
            around += usize::from(
                ["multipath", "fast open", "no port"].iter().any(|word| what.contains(word)),
            );
            issuers += usize::from(what.ends_with("issuers"));
            devices += usize::from(what.starts_with("open ") && what.ends_with("devices/tpm"));
            studies += usize::from(what.ends_with("asked/study.yaml"));
            if what == "send a datagram" {
                // Names are resolved by datagrams; who writes an address closes that way.
                assert_eq!(probe["refused"].is_null(), datagrams, "{probe}");
            }
        }
        let (told, wanted) = ((issuers, around), (1, 3));
        let of_task = (devices, studies) == if alone { (0, 1) } else { (1, 0) };
        assert!(ok == is_whole(&said) && told == wanted && of_task, "{said}");
    }
    Ok(())
}
