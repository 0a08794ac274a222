//! One target under libFuzzer: `FALAJ_FUZZ_TARGET` names it, and its seeds are written to the folder `FALAJ_FUZZ_SEEDS`.
//! `cargo xtask fuzz` builds and runs this, with coverage, on the stable toolchain.
#![no_main]

use falaj_fuzz::{Target, target};
use libfuzzer_sys::fuzz_target;
use std::{env, fs, path::PathBuf, sync::LazyLock};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = env::var("FALAJ_FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| panic!("FALAJ_FUZZ_TARGET: there is no target `{name}`"))
});

fn write_seeds() {
    let Some(folder) = env::var_os("FALAJ_FUZZ_SEEDS").map(PathBuf::from) else { return };
    for (n, seed) in (TARGET.seeds)().iter().enumerate() {
        let path = folder.join(format!("seed-{n}"));
        fs::write(&path, seed).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

fuzz_target!(
    init: write_seeds(),
    |data: &[u8]| (TARGET.run)(data)
);
