//! Hosts with networks of their own: an agent at an address inside its place is let in, one outside is not, and one that moves
//! in the middle of a study is out. Needs root and iproute2, and says aloud when it is skipped.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::{
    federation::{Federation, Process, SiteSpec, study_yaml, text, wait_for, wisconsin},
    skipped,
};
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
};

/// Operators come from the coordinator's own host.
const LOOPBACK: &str = "127.0.0.0/8,ae-on/ae-az\n";
const INSIDE: &str = "10.77.1.0/24,ae-on/ae-az\n";

/// A coordinator's host and two others, each a network namespace, which are deleted in the end. The first host is inside, at
/// 10.77.1.2, the second outside, at 10.88.1.2.
struct Hosts {
    tag: String,
}

impl Hosts {
    /// Makes them, or says why this machine cannot.
    fn new() -> Result<Option<Self>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let hosts = Self { tag: format!("{:x}{count:x}", process::id()) };
        let made = ip(&["netns", "add", &hosts.name("c")]);
        if let Err(e) = made {
            ensure!(std::env::var_os("CI").is_none(), "CI must be able to make namespaces: {e:#}");
            skipped(&format!("this machine lets nobody make network namespaces here: {e:#}"));
            return Ok(None);
        }
        let c = hosts.name("c");
        ip(&["-n", &c, "link", "set", "lo", "up"])?;
        for (host, net) in [("a", "10.77.1"), ("b", "10.88.1")] {
            let (there, link) = (hosts.name(host), format!("to-{host}"));
            ip(&["netns", "add", &there])?;
            ip(&["-n", &there, "link", "set", "lo", "up"])?;
            let veth = ["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns"];
            ip(&[&["-n", &c][..], &veth, &[&there]].concat())?;
            for (at, device, address) in [(&c, &*link, 1), (&there, "eth0", 2)] {
                ip(&["-n", at, "address", "add", &format!("{net}.{address}/24"), "dev", device])?;
                ip(&["-n", at, "link", "set", device, "up"])?;
            }
        }
        Ok(Some(hosts))
    }

    fn name(&self, host: &str) -> String {
        format!("falaj-{}-{host}", self.tag)
    }

    /// What runs a command on a host.
    fn on(&self, host: &str) -> Vec<String> {
        ["ip", "netns", "exec", &self.name(host)].map(Into::into).to_vec()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in ["a", "b", "c"] {
            // One that was not made cannot be deleted.
            let _ = ip(&["netns", "delete", &self.name(host)]);
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let out = Command::new("ip").args(args).output().context("iproute2 is not installed")?;
    ensure!(out.status.success(), "ip {}: {}", args.join(" "), text(&out));
    Ok(())
}

/// A coordinator on its host, with a list of networks.
fn coordinator(
    hosts: &Hosts,
    list: &str,
    change: impl FnOnce(&mut Federation) -> Result<()>,
) -> Result<(Federation, Process)> {
    let mut federation = Federation::new()?;
    change(&mut federation)?;
    fs::write(networks(&federation), list)?;
    federation.coordinator_extra =
        format!("[evidence]\nnetworks = [{{ file = \"{}\" }}]\n", networks(&federation).display());
    federation.listen = "0.0.0.0".into();
    federation.operators_through = hosts.on("c");
    let through = hosts.on("c");
    let through: Vec<&str> = through.iter().map(String::as_str).collect();
    let process = federation.start_coordinator_through(&through)?;
    Ok((federation, process))
}

fn networks(federation: &Federation) -> PathBuf {
    federation.dir().join("networks.csv")
}

/// Starts a site's agent on a host, towards the coordinator's address there.
fn agent(hosts: &Hosts, federation: &Federation, host: &str, name: &str) -> Result<Process> {
    let gateway = if host == "a" { [10, 77, 1, 1] } else { [10, 88, 1, 1] };
    let bound = federation.agents_connect_to()?;
    let to = SocketAddr::from((gateway, bound.port()));
    let mut site = SiteSpec::new(name, "ae-on/ae-az");
    if host == "b" {
        site.args = vec!["--exit-on-refusal".into()];
    }
    let config = federation.prepare_site(&site, &wisconsin(1)?[0])?;
    let lines = fs::read_to_string(&config)?.replace(&bound.to_string(), &to.to_string());
    fs::write(&config, lines)?;
    let through = hosts.on(host);
    let through: Vec<&str> = through.iter().map(String::as_str).collect();
    federation.start_agent_through(&through, &site)
}

/// The newest entry of a kind about a connection from this address, by this rule.
fn entry(federation: &Federation, kind: &str, from: &str, rule: &str) -> Result<Value> {
    wait_for(&format!("{kind} from {from}"), || {
        let entries = federation.entries(kind)?;
        let about = |e: &&Value| {
            let e = &e["entry"];
            let address = e["actor"]["address"].as_str().unwrap_or_default();
            address.starts_with(from) && e["policy_ids"].to_string().contains(rule)
        };
        Ok(entries.iter().filter(about).max_by_key(|e| e["index"].as_u64()).cloned())
    })
}

fn updates(federation: &Federation) -> Result<usize> {
    Ok(federation.entries("update.accepted")?.len())
}

/// Shows RES-01 between hosts: admitted inside, refused outside, cut off when the lists say that its network lies elsewhere, let in
/// again when they say so no longer, and refused when its address changes, all while it takes part in a study.
#[test]
fn a_host_that_moves_in_the_middle_of_a_study_is_refused() -> Result<()> {
    let Some(hosts) = Hosts::new()? else { return Ok(()) };
    let list = format!("{LOOPBACK}{INSIDE}");
    let (federation, _coordinator) = coordinator(&hosts, &list, |_| Ok(()))?;
    let _inside = agent(&hosts, &federation, "a", "hospital-1")?;
    let mut outside = agent(&hosts, &federation, "b", "hospital-2")?;
    ensure!(outside.exit_code()? != Some(0), "{}", outside.output());
    ensure!(outside.output().contains("RES-010"), "{}", outside.output());
    let refused = entry(&federation, "connection.refused", "10.88.1.2:", "RES-010")?;
    ensure!(refused["entry"]["evidence"]["address_in_place"] == false, "{refused}");
    let admitted = entry(&federation, "connection.admitted", "10.77.1.2:", "ACC-100")?;
    ensure!(admitted["entry"]["evidence"]["address_in_place"] == true, "{admitted}");
    federation.submit(&study_yaml("moving", 10_000, 1))?;
    wait_for("updates", || Ok((updates(&federation)? > 2).then_some(())))?;
    // The network is somewhere else by another list.
    fs::write(networks(&federation), format!("{LOOPBACK}10.77.1.0/24,gb/gb-lnd\n"))?;
    let ended = entry(&federation, "connection.ended", "10.77.1.2:", "RES-010")?;
    ensure!(ended["entry"]["reason"] == "policy", "{ended}");
    entry(&federation, "connection.refused", "10.77.1.2:", "RES-010")?;
    let before = updates(&federation)?;
    fs::write(networks(&federation), &list)?;
    wait_for("updates again", || Ok((updates(&federation)? > before + 2).then_some(())))?;
    // The host moves: another address, and the same way to the coordinator.
    let (a, c) = (hosts.name("a"), hosts.name("c"));
    ip(&["-n", &c, "address", "add", "10.88.2.1/24", "dev", "to-a"])?;
    ip(&["-n", &a, "address", "add", "10.88.2.2/24", "dev", "eth0"])?;
    ip(&["-n", &a, "address", "delete", "10.77.1.2/24", "dev", "eth0"])?;
    ip(&["-n", &a, "route", "add", "10.77.1.1/32", "via", "10.88.2.1"])?;
    let moved = entry(&federation, "connection.refused", "10.88.2.2:", "RES-010")?;
    let at = moved["index"].as_u64().context("an index")?;
    let later = federation.entries("update.accepted")?;
    ensure!(later.iter().all(|e| e["index"].as_u64() < Some(at)), "an update came after it moved");
    let shown = federation.falaj_json(&["study", "show", "moving"])?;
    ensure!(shown["state"] == "running", "it was in the middle of a study: {shown}");
    federation.verified()?;
    Ok(())
}

/// Shows RES-02 where the kernel can delay packets: 400 ms on the way do not fit into a bound of 100 ms.
#[test]
fn a_host_behind_a_delayed_link_is_too_far_away() -> Result<()> {
    let Some(hosts) = Hosts::new()? else { return Ok(()) };
    let netem = ["tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "400ms"];
    let on = hosts.on("a");
    let out = Command::new(&on[0]).args(&on[1..]).args(netem).output()?;
    if !out.status.success() {
        skipped(&format!("this kernel delays no packets (tc netem): {}", text(&out)));
        return Ok(());
    }
    let list = format!("{LOOPBACK}{INSIDE}");
    let (federation, _coordinator) = coordinator(&hosts, &list, crate::evidence::with_a_bound)?;
    let _agent = agent(&hosts, &federation, "a", "hospital-1")?;
    let ended = entry(&federation, "connection.ended", "10.77.1.2:", "NEAR")?;
    let rtt = ended["entry"]["evidence"]["rtt_us"].as_i64();
    ensure!(rtt.is_some_and(|us| us >= 400_000), "{ended}");
    Ok(())
}
