//! `falaj-prove`: what is proven of a set of policies, on the command line.

use anyhow::{Context as _, Result};
use clap::Parser;
use falaj_policies::{POLICIES, SCHEMA};
use falaj_prove::{PROPERTIES, Prover};
use std::{
    collections::BTreeMap,
    fs,
    io::{IsTerminal as _, Write as _, stderr},
    path::PathBuf,
    process::ExitCode,
};

/// Proves of a set of policies that its properties hold for every request, and that no rule can err; then changes each rule
/// in every small way, and proves that the properties notice.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  falaj-prove policies\n  falaj-prove /etc/falaj/policies --json\n  CVC5=/opt/cvc5/bin/cvc5 falaj-prove policies\n\nThe folder holds coordinator.cedar, coordinator.cedarschema and coordinator.properties.cedar. What a `forbid` of the\nproperties describes must never be allowed, what a `permit` of them describes must always be.\n\nExit codes: 0 all is proven, 1 something is refuted, or a changed rule goes unnoticed, 2 there is no answer."
)]
struct Cli {
    /// The folder with the policies.
    policies: PathBuf,
    /// Do not change rules.
    #[arg(long)]
    no_mutants: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&Cli::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("falaj-prove: {e:#}");
            ExitCode::from(2)
        }
    }
}

async fn run(cli: &Cli) -> Result<bool> {
    let mut files = BTreeMap::new();
    for name in [POLICIES, SCHEMA, PROPERTIES] {
        let path = cli.policies.join(name);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.insert(name.to_owned(), bytes);
    }
    let mut prover = Prover::new(&files)?;
    let refutations = prover.refutations().await?;
    let shown = stderr().is_terminal();
    let progress = |done: usize, of: usize| {
        if shown {
            // Without it nothing but the look of things is lost.
            let _ = write!(
                stderr(),
                "\rchanged rules: {} of {of}{}",
                done + 1,
                if done + 1 == of { "\n" } else { "" }
            );
        }
    };
    let mutants = if refutations.is_empty() && !cli.no_mutants {
        Some(prover.mutants(progress).await?)
    } else {
        None
    };
    let (properties, rules, kinds) = prover.counts();
    let survivors = mutants.as_ref().map_or(0, |m| m.survivors.len());
    let good = refutations.is_empty() && survivors == 0;
    if cli.json {
        let answer = serde_json::json!({
            "proven": good, "properties": properties, "rules": rules, "requests": kinds,
            "refutations": refutations, "mutants": mutants,
        });
        println!("{answer:#}");
        return Ok(good);
    }
    for refutation in &refutations {
        println!("refuted: {refutation}\n");
    }
    if let Some(mutants) = &mutants {
        for (rule, changed) in &mutants.survivors {
            println!("unnoticed: {rule} as\n{changed}\n");
        }
        println!(
            "{} changed rules: {} refuted, {} make no difference, {survivors} unnoticed",
            mutants.refuted + mutants.equivalent + survivors,
            mutants.refuted,
            mutants.equivalent,
        );
    }
    let verdict = if good { "proven" } else { "not proven" };
    println!(
        "{verdict}: {properties} properties of {rules} rules over {kinds} kinds of requests; no rule errs"
    );
    Ok(good)
}
