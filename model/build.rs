//! Lets programs built with LibTorch find it where it was found at build time, without an environment variable. Several crates have
//! this build script.

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    // Told by torch-sys, a direct dependency under the feature `tch` for this alone.
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        // Of `telar`: to the build scripts of its users' programs, as DEP_TELAR_LIBTORCH_LIB.
        println!("cargo:libtorch_lib={folder}");
    }
}
