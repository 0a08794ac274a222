//! Lets the agent and its tests find libtorch where it was linked, without environment variables.

use std::env;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if env::var_os("CARGO_FEATURE_TORCH").is_none() {
        return;
    }
    // An installed agent brings its libraries in `../lib`; a built one uses those it was linked with.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    if let Ok(libtorch) = env::var("LIBTORCH")
        && let Ok(libtorch) = std::path::Path::new(&libtorch).canonicalize()
    {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", libtorch.join("lib").display());
    }
}
