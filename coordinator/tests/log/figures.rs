//! Figures of updates: what the log has of how they compare is shown beside what sites have counted.

use super::{
    versions::gave_in,
    world::{World, study, text},
};
use anyhow::{Context as _, Result, ensure};
use axum::http::{Request, StatusCode};
use falaj_core::{
    audit::Draft,
    id::SiteId,
    robust::{Compared, Outlier},
};
use serde_json::{Value, json};

/// A study whose gates ask how updates compare.
const APART: &str = "apart";
const GATES: &str = "gates:\n  - { metric: update_norm_ratio, each_site: true, at_most: 3 }\n";
const SITES: [(&str, &str); 3] =
    [("hospital-1", "0.5"), ("hospital-2", "0.5"), ("hospital-3", "0.5")];

async fn submitted(world: &World) -> Result<()> {
    let yaml = study(APART).replace("min_sites: 2", "min_sites: 3") + GATES;
    let request = Request::post("/api/v1/studies").body(yaml.into())?;
    let answer = world.ask(request, &world.operator).await?;
    ensure!(answer.status() == StatusCode::CREATED, "{}", text(answer).await?);
    Ok(())
}

/// A round in which the last of three updates has this norm, and points away from the others.
async fn compared(world: &World, number: u32, norm: f64) -> Result<()> {
    let sites = SITES
        .iter()
        .map(|(name, _)| format!("spiffe://falaj.test/ae-on/ae-az/site/{name}").parse::<SiteId>());
    let outlier = |norm, cosine| Outlier { norm, cosine: Some(cosine) };
    let figures = vec![outlier(1.0, 0.75), outlier(2.0, 0.5), outlier(norm, -0.25)];
    let of = Compared::new(sites.collect::<Result<_, _>>()?, figures)?;
    let tell = |published: Draft| published.texts("compared", of.lines());
    gave_in(world, (APART, number), &SITES, tell).await
}

async fn figures(world: &World, query: &str) -> Result<Vec<Value>> {
    let page = world.get(&format!("studies/{APART}/figures{query}")).await?;
    Ok(page["items"].as_array().context("items")?.clone())
}

#[tokio::test]
async fn figures_of_updates_are_shown_with_what_gates_say_of_them() -> Result<()> {
    let world = World::new().await?;
    submitted(&world).await?;
    ensure!(figures(&world, "").await?.is_empty(), "nothing was compared");
    compared(&world, 2, 8.0).await?;
    compared(&world, 3, 3.0).await?;
    let rounds = figures(&world, "").await?;
    let numbers: Vec<_> = rounds.iter().filter_map(|of| of["round"].as_u64()).collect();
    ensure!(numbers == [3, 2], "{numbers:?}");
    let of = rounds.last().context("a round")?;
    ensure!(of.get("confidence").is_none() && of["sites"] == json!([]), "{of}");
    let shown: Vec<_> = of["figures"].as_array().context("figures")?.iter().collect();
    let names: Vec<_> = shown.iter().filter_map(|f| f["figure"].as_str()).collect();
    let wanted = [
        "update_norm_ratio at hospital-1",
        "update_norm_ratio at hospital-2",
        "update_norm_ratio at hospital-3",
        "update_cosine at hospital-1",
        "update_cosine at hospital-2",
        "update_cosine at hospital-3",
    ];
    ensure!(names == wanted, "{names:?}");
    let values: Vec<_> = shown.iter().filter_map(|f| f["value"].as_f64()).collect();
    ensure!(values == [0.5, 1.0, 4.0, 0.75, 0.5, -0.25], "{values:?}");
    // One gate asks for the ratio, and none for the cosine.
    let passed: Vec<_> = shown.iter().map(|f| f["gates"][0]["pass"].as_bool()).collect();
    let (yes, no) = (Some(true), Some(false));
    ensure!(passed == [yes, yes, no, None, None, None], "{passed:?}");
    // They are filtered and paged as all others.
    let cosines = figures(&world, "?round=3&figure=update_cosine").await?;
    let [of] = &cosines[..] else { anyhow::bail!("{cosines:?}") };
    ensure!(of["figures"].as_array().is_some_and(|all| all.len() == 3), "{of}");
    let page = world.get(&format!("studies/{APART}/figures?limit=1")).await?;
    ensure!(page["next"] == "3-0", "{page}");
    let older = figures(&world, "?limit=1&cursor=3-0").await?;
    ensure!(older.len() == 1 && older[0]["round"] == 2, "{older:?}");
    Ok(())
}

#[tokio::test]
async fn of_updates_whose_figures_are_none_of_theirs_nothing_is_shown() -> Result<()> {
    let world = World::new().await?;
    submitted(&world).await?;
    let of_others =
        |published: Draft| published.texts("compared", ["1.000000e0 0.500000 else".into()]);
    gave_in(&world, (APART, 2), &SITES, of_others).await?;
    ensure!(figures(&world, "").await?.is_empty());
    Ok(())
}
