//! Compiles the messages, without `protoc`.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let source = "telar/v1/training.proto";
    println!("cargo:rerun-if-changed={source}");
    let descriptors = protox::compile([source], ["."])?;
    let folder = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(folder.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // Gradients as `Bytes`: decoding one takes a handle to the buffer that it came in, not a copy.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
