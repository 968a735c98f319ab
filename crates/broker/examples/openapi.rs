//! Prints the control API's OpenAPI document: `cargo xtask openapi` keeps `docs/openapi.json` so.

fn main() {
    print!("{}", hvsock_broker::api::openapi());
}
