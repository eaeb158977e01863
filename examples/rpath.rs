//! The build script of all examples: a program with LibTorch finds it at run time where it was found at build time.

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_TELAR_LIBTORCH_LIB");
    if let Ok(folder) = std::env::var("DEP_TELAR_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
