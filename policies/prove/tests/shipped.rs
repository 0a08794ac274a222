//! What is proven of the policies that are shipped. Without cvc5 it says that it is skipped, or fails where
//! `FALAJ_NO_SKIP` is set.

use cedar_policy::PolicySet;
use falaj_policies::{POLICIES, SCHEMA};
use falaj_prove::{PROPERTIES, ProveError, Prover};
use std::{collections::BTreeMap, error::Error, fs, io::Write as _, path::Path, str::FromStr as _};

type Done = Result<(), Box<dyn Error>>;

fn files() -> Result<BTreeMap<String, Vec<u8>>, Box<dyn Error>> {
    files_of("")
}

/// The files of a set: of the one that is shipped, or of a ready one in a folder.
fn files_of(set: &str) -> Result<BTreeMap<String, Vec<u8>>, Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(set);
    let read = |name: &str| Ok((name.to_owned(), fs::read(folder.join(name))?));
    [POLICIES, SCHEMA, PROPERTIES].into_iter().map(read).collect()
}

/// A prover for these files, or none where there is no solver.
fn prover(files: &BTreeMap<String, Vec<u8>>) -> Result<Option<Prover>, Box<dyn Error>> {
    match Prover::new(files) {
        Ok(prover) => Ok(Some(prover)),
        Err(e @ ProveError::Solver(_)) if std::env::var_os("FALAJ_NO_SKIP").is_none() => {
            let _ = writeln!(std::io::stderr(), "SKIPPED: {e}");
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

#[tokio::test]
async fn every_property_holds_no_rule_errs_and_every_changed_rule_is_refuted() -> Done {
    for set in ["", "sets/uae-health", "sets/uae-finance", "sets/strict-demo", "sets/break-glass"] {
        let Some(mut prover) = prover(&files_of(set)?)? else { return Ok(()) };
        let refutations = prover.refutations().await?;
        assert!(refutations.is_empty(), "{set}: {refutations:#?}");
        let mutants = prover.mutants(|_, _| {}).await?;
        assert!(mutants.survivors.is_empty(), "{set}: {mutants:#?}");
        let (_, rules, _) = prover.counts();
        assert!(mutants.refuted > 3 * rules, "{set}: hardly anything was changed: {mutants:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_removed_rule_is_refuted_with_a_request_that_shows_it() -> Done {
    let mut files = files()?;
    let all = PolicySet::from_str(str::from_utf8(&files[POLICIES])?)?;
    let others = all.policies().filter(|p| p.annotation("id") != Some("RES-001")).cloned();
    let text: Vec<String> = others.map(|p| p.to_string()).collect();
    files.insert(POLICIES.to_owned(), text.concat().into_bytes());
    let Some(mut prover) = prover(&files)? else { return Ok(()) };
    let refutations = prover.refutations().await?;
    assert!(!refutations.is_empty());
    for refutation in refutations {
        assert_eq!(refutation.id, "nothing-for-whoever-is-abroad");
        assert!(refutation.example.contains("jurisdiction"), "{refutation}");
    }
    Ok(())
}

#[tokio::test]
async fn a_rule_of_which_no_property_speaks_is_named() -> Done {
    let mut files = files()?;
    let all = PolicySet::from_str(str::from_utf8(&files[PROPERTIES])?)?;
    let others = all.policies().filter(|p| p.annotation("id") != Some("sites-onshore-connect"));
    let text: Vec<String> = others.map(ToString::to_string).collect();
    files.insert(PROPERTIES.to_owned(), text.concat().into_bytes());
    let Some(mut prover) = prover(&files)? else { return Ok(()) };
    let mutants = prover.mutants(|_, _| {}).await?;
    assert_eq!(mutants.survivors, [("ACC-100".to_owned(), "removed".to_owned())]);
    Ok(())
}

/// Should somebody widen the schema too, the properties hold it.
#[tokio::test]
async fn a_site_that_may_revoke_is_refuted() -> Done {
    let mut files = files()?;
    let schema = String::from_utf8(files[SCHEMA].clone())?;
    let (before, from) = schema.split_at(schema.find("\"site.revoke\"").ok_or("no such action")?);
    let wider = from.replacen("principal: [Operator]", "principal: [Site, Operator]", 1);
    assert_ne!(wider, from, "the schema was changed: change this test");
    files.insert(SCHEMA.to_owned(), [before, &wider].concat().into_bytes());
    let rule = r#"@id("SELF") permit (principal is Falaj::Site, action == Falaj::Action::"site.revoke", resource);"#;
    let text = [files[POLICIES].as_slice(), rule.as_bytes()].concat();
    files.insert(POLICIES.to_owned(), text);
    let Some(mut prover) = prover(&files)? else { return Ok(()) };
    let refutations = prover.refutations().await?;
    let mut ids: Vec<&str> = refutations.iter().map(|r| r.id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["only-operators-onshore-revoke-and-prune", "sites-do-nothing-else"]);
    Ok(())
}

#[tokio::test]
async fn a_rule_that_can_err_is_named() -> Done {
    let mut files = files()?;
    let rule = r#"@id("OVER") permit (principal is Falaj::Site, action == Falaj::Action::"connect", resource)
        when { context.hops + 1 > 0 };"#;
    let schema = String::from_utf8(files[SCHEMA].clone())?;
    let with_hops = schema.replacen("evidence: Evidence }", "evidence: Evidence, hops: Long }", 1);
    files.insert(SCHEMA.to_owned(), with_hops.into_bytes());
    let text = [files[POLICIES].as_slice(), rule.as_bytes()].concat();
    files.insert(POLICIES.to_owned(), text);
    let Some(mut prover) = prover(&files)? else { return Ok(()) };
    let refutations = prover.refutations().await?;
    let erring: Vec<_> = refutations.iter().filter(|r| r.what == "the rule errs").collect();
    assert_eq!(erring.len(), 1, "{refutations:#?}");
    assert_eq!(erring[0].id, "OVER");
    Ok(())
}
