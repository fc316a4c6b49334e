//! The description of the API, from which clients are made: whole, and changed only on purpose (`INSTA_UPDATE=always`).

#[test]
fn the_description_is_the_one_that_was_agreed() {
    insta::assert_json_snapshot!("openapi", orderflow_producer::openapi());
}

/// OpenAPI demands it, and tools refuse a document without.
#[test]
fn every_answer_is_described() {
    let document = serde_json::to_value(orderflow_producer::openapi()).expect("the description is JSON");
    let paths = document["paths"].as_object().expect("paths");
    let operations = paths.iter().flat_map(|(path, operations)| {
        operations.as_object().expect("operations").iter().map(move |(method, operation)| (path, method, operation))
    });
    let mut answers = 0;
    for (path, method, operation) in operations {
        for (status, answer) in operation["responses"].as_object().expect("responses") {
            answers += 1;
            let described = answer["description"].as_str().is_some_and(|text| !text.is_empty());
            assert!(described, "{method} {path} {status}: {answer}");
        }
    }
    assert!(answers > 20, "only {answers} answers");
}
