//! Rebuilds the crate when a migration is added, because the compiler does not notice new files.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
