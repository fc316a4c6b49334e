//! The description of the API, from which clients are made, changes only on purpose: with `INSTA_UPDATE=always`.

#[test]
fn the_description_is_the_one_that_was_agreed() {
    insta::assert_json_snapshot!("openapi", orderflow_producer::openapi());
}
