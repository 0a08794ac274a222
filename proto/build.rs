//! Compiles the `.proto` files in pure Rust: no `protoc` is needed.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["falaj/v1/federation.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".falaj.v1")
        .out_dir(out)
        .compile_fds(descriptors)?;
    Ok(())
}
