//! Compiles the `.proto` files in pure Rust: no `protoc` is needed.

use std::error::Error;

#[cfg(feature = "services")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["falaj/v1/federation.proto"], ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".falaj.v1")
        .out_dir(out)
        .compile_fds(descriptors)?;
    Ok(())
}

#[cfg(not(feature = "services"))]
fn main() -> Result<(), Box<dyn Error>> {
    Ok(())
}
