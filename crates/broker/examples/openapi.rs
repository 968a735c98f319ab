//! Prints the control API's OpenAPI document. `cargo xtask openapi` writes it to `docs/openapi.json`.

fn main() {
    print!("{}", hvsock_broker::api::openapi());
}
