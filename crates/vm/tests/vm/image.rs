//! Images: what is converted and what is refused, and that the `tiny` appliance builds and boots.

use std::path::Path;

use collective_vm::image::build_cached;

#[tokio::test]
async fn tiny_is_built() {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../appliances/tiny");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("appliances");
    let started = std::time::Instant::now();
    let built = build_cached(&recipe, &cache).await.unwrap();
    println!("{:?} {:?}", started.elapsed(), built);
}
