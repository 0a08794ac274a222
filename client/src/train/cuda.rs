//! CUDA at run time: the one binary runs on a CPU, and on a GPU where the site has a full PyTorch.
//!
//! The agent links libtorch's CPU part only. Loading `libtorch_cuda.so` before the first tensor registers the
//! CUDA backend with it. This is the only `unsafe` code of the project.

use std::path::Path;

/// Loads the CUDA backend from a full PyTorch's `lib` folder, of the version that the agent was built
/// with. The library stays loaded until the process ends.
///
/// # Errors
/// What the dynamic linker says.
pub fn load(folder: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    for name in ["libc10_cuda.so", "libtorch_cuda.so"] {
        let path = folder.join(name);
        #[expect(unsafe_code, reason = "loading a library runs its initialisers")]
        // SAFETY: the operator names the folder in the site's own configuration; the libraries there are
        // PyTorch's, whose initialisers register kernels and touch nothing of ours.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
        let library = library.map_err(|e| format!("{}: {e}", path.display()))?;
        // Unloading it would leave its kernels registered and gone.
        std::mem::forget(library);
    }
    Ok(())
}
