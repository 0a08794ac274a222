//! The log as static files in a folder or a bucket, which a coordinator's operator keeps up to date.

use anyhow::{Context as _, Result, ensure};
use falaj_tests::federation::{Federation, run, text};
use serde_json::Value;
use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

const PLACE: [&str; 2] = ["--to-place", "ae-on/ae-az"];

fn mirror(federation: &Federation, folder: &str) -> Result<Value> {
    federation.falaj_json(&[&["log", "mirror", folder], &PLACE[..]].concat())
}

fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(root)?.to_owned());
            }
        }
    }
    Ok(found)
}

#[test]
fn a_mirror_has_the_files_of_the_verifier_and_takes_no_other_log() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let folder = federation.dir().join("mirror");
    let folder = folder.to_str().context("UTF-8")?;
    let first = mirror(&federation, folder)?;
    let size = |answer: &Value| answer["tree_size"].as_u64().context("a size");
    for _ in 0..300 {
        federation.falaj_json(&["status"])?;
    }
    let second = mirror(&federation, folder)?;
    ensure!(second["from"] == first["tree_size"] && size(&second)? > 300, "{second}");
    let upto = size(&second)?.to_string();
    let (bundle, tiles) = (federation.dir().join("b.tar"), federation.dir().join("tiles"));
    let (path, laid) = (bundle.to_str().context("UTF-8")?, tiles.to_str().context("UTF-8")?);
    let out = federation.falaj(&["log", "export", "--tree-size", &upto, "-o", path])?;
    ensure!(out.status.success(), "{}", text(&out));
    run("falaj-verify", &[path, "--tiles", laid])?;
    let laid = files(&tiles)?;
    ensure!(laid.len() >= 6, "{laid:?}");
    for file in laid {
        let same = fs::read(tiles.join(&file))? == fs::read(Path::new(folder).join(&file))?;
        ensure!(same, "{}", file.display());
    }
    // Another log, of the same name, with fewer entries: nothing changes.
    let mut other = Federation::new()?;
    let _other = other.start_coordinator()?;
    let kept = fs::read(Path::new(folder).join("checkpoint"))?;
    let out = other.falaj(&[&["log", "mirror", folder], &PLACE[..]].concat())?;
    ensure!(!out.status.success() && text(&out).contains(&upto), "{}", text(&out));
    ensure!(fs::read(Path::new(folder).join("checkpoint"))? == kept);
    Ok(())
}

/// What came to a bucket: methods and paths, in order.
type Came = Arc<Mutex<Vec<String>>>;

/// A store that takes whatever is put, and has nothing: it serves until the test ends.
fn bucket() -> Result<(SocketAddr, Came)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, came) = (listener.local_addr()?, Came::default());
    let told = came.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // Whoever hangs up in the middle is missed by the test.
            let _ = stream.and_then(|stream| answered(&stream, &told));
        }
    });
    Ok((address, came))
}

fn answered(stream: &TcpStream, came: &Came) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut asked, mut length) = (String::new(), 0);
    reader.read_line(&mut asked)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse::<u64>().map_err(io::Error::other)?;
        }
    }
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    let puts = asked.starts_with("PUT ");
    let words = asked.rsplit_once(' ').map_or("", |(words, _)| words).to_owned();
    came.lock().map_err(|_| io::Error::other("a panic"))?.push(words);
    let status = if puts { "200 OK\r\nETag: \"one\"" } else { "404 Not Found" };
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let mut writer = stream;
    writer.write_all(answer.as_bytes())
}

/// A bucket is an endpoint as the coordinator's own are: what lies elsewhere than it is said to gets nothing of the log.
#[test]
fn a_bucket_gets_the_log_only_where_it_is_said_to_lie() -> Result<()> {
    let mut federation = Federation::new()?;
    let list = federation.dir().join("networks.csv");
    fs::write(&list, "127.0.0.0/8,ae-on/ae-az\n")?;
    federation.coordinator_extra =
        format!("[evidence]\nnetworks = [{{ file = \"{}\" }}]\n", list.display());
    let _coordinator = federation.start_coordinator()?;
    let (address, came) = bucket()?;
    let endpoint = format!("AWS_ENDPOINT_URL=http://{address}");
    let settings = ["env", &endpoint, "AWS_ALLOW_HTTP=true", "AWS_REGION=me-central-1"];
    let key = ["AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test"];
    federation.operators_through =
        settings.iter().chain(&key).map(|word| (*word).to_owned()).collect();
    let mirror = ["log", "mirror", "s3://logs/2026", "--to-place"];
    let out = federation.falaj(&[&mirror[..], &["ae-on/ae-du"][..]].concat())?;
    ensure!(!out.status.success() && text(&out).contains("RES-015"), "{}", text(&out));
    let wrote = || -> Result<usize> {
        let came = came.lock().map_err(|_| anyhow::anyhow!("a panic"))?;
        Ok(came.iter().filter(|asked| asked.starts_with("PUT /logs/2026/")).count())
    };
    ensure!(wrote()? == 0, "{came:?}");
    let denied = federation.entries("access.denied")?;
    let denied = &denied.last().context("an entry")?["entry"];
    ensure!(denied["action"] == "endpoint.use" && denied["endpoint"] == "mirror", "{denied}");
    ensure!(denied["actor"].to_string().contains("/coordinator/"), "{denied}");
    let answer = federation.falaj_json(&[&mirror[..], &["ae-on/ae-az"][..]].concat())?;
    let files = answer["files"].as_u64().context("a number")?;
    // The entries, their tile, the checkpoint by its size; and the newest one besides.
    ensure!(files >= 3 && wrote()? == usize::try_from(files)? + 1, "{answer}: {came:?}");
    let allowed = federation.entries("endpoint.allowed")?;
    let allowed = &allowed.last().context("an entry")?["entry"];
    ensure!(allowed["endpoint"] == "mirror" && allowed["asked"]["host"] == "127.0.0.1");
    ensure!(allowed["evidence"]["address_in_place"] == true, "{allowed}");
    federation.operators_through.clear();
    federation.verified()?;
    Ok(())
}
