//! The OpenAPI document, from which clients are made: complete, and changed only on purpose (`INSTA_UPDATE=always`).

#[test]
fn the_document_equals_its_snapshot() {
    insta::assert_json_snapshot!("openapi", orderflow_producer::openapi());
}

/// OpenAPI requires descriptions, and tools refuse a document without them.
#[test]
fn every_response_has_a_description() {
    let document = serde_json::to_value(orderflow_producer::openapi()).expect("the description is JSON");
    let paths = document["paths"].as_object().expect("paths");
    let operations = paths.iter().flat_map(|(path, operations)| {
        operations.as_object().expect("operations").iter().map(move |(method, operation)| (path, method, operation))
    });
    let mut responses = 0;
    for (path, method, operation) in operations {
        for (status, response) in operation["responses"].as_object().expect("responses") {
            responses += 1;
            let described = response["description"].as_str().is_some_and(|text| !text.is_empty());
            assert!(described, "{method} {path} {status}: {response}");
        }
    }
    assert!(responses > 20, "only {responses} responses");
}
