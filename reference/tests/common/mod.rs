//! Reads the repository for the tests: its files, and the syntax of its crates.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use syn::{Attribute, Expr, ExprLit, Item, Lit, Meta};

/// The crates of the product.
pub const PRODUCT: [&str; 7] = ["core", "service", "dead-letters", "provision", "producer", "consumer", "operator"];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the repository").to_owned()
}

pub fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("read {name}: {error}"))
}

/// Returns the syntax of a file.
pub fn parse(name: &str) -> syn::File {
    syn::parse_file(&read(name)).unwrap_or_else(|error| panic!("parse {name}: {error}"))
}

/// Returns the files below `folder` in alphabetical order, from the root of the repository on, without what is hidden or
/// built.
pub fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut entries: Vec<_> =
        fs::read_dir(root().join(folder)).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let relative = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        let is_skipped = ["target", "node_modules"].contains(&name.as_str())
            || name.starts_with('.') && ![".github", ".ci"].contains(&name.as_str());
        if is_skipped {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&relative));
        } else {
            found.push(relative);
        }
    }
    found
}

/// A module in a file of its own.
pub struct Module {
    /// Names of the module and its parents, as in `["http", "place"]`; empty at the root of the crate.
    pub path: Vec<String>,
    /// Path from the root of the repository on.
    pub file: String,
    pub syntax: syn::File,
}

/// Returns the modules of a crate's library, in the order of their declaration, without those of its tests.
pub fn modules(package: &str) -> Vec<Module> {
    let mut modules = Vec::new();
    collect(&format!("{package}/src/lib.rs"), &format!("{package}/src"), Vec::new(), &mut modules);
    modules
}

fn collect(file: &str, folder: &str, path: Vec<String>, modules: &mut Vec<Module>) {
    let syntax = parse(file);
    let children: Vec<String> = syntax
        .items
        .iter()
        .filter_map(|item| match item {
            Item::Mod(item) if item.content.is_none() && !is_test(&item.attrs) => Some(item.ident.to_string()),
            _ => None,
        })
        .collect();
    modules.push(Module { path: path.clone(), file: file.to_owned(), syntax });
    for child in children {
        let path = [path.clone(), vec![child.clone()]].concat();
        let candidates = [format!("{folder}/{child}.rs"), format!("{folder}/{child}/mod.rs")];
        let file = candidates.iter().find(|file| root().join(file).exists());
        let file = file.unwrap_or_else(|| panic!("{file:?}: the module {child} has no file"));
        collect(file, &format!("{folder}/{child}"), path, modules);
    }
}

/// Says whether an item is compiled in tests only.
pub fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            let condition = list.tokens.to_string().replace(' ', "");
            condition == "test" || condition.starts_with("any(test")
        }
        Meta::Path(path) => path.is_ident("test"),
        _ => false,
    })
}

/// Returns the text of an item's documentation on one line.
pub fn documentation(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => string(&pair.value),
        _ => None,
    });
    let text = lines.map(|line| line.trim().to_owned()).collect::<Vec<_>>().join(" ");
    text.trim().to_owned()
}

/// Returns the value of a literal string.
pub fn string(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
        _ => None,
    }
}

/// Returns the elements of a constant that is an array of literal strings.
pub fn strings(file: &str, name: &str) -> Vec<String> {
    let syntax = parse(file);
    let constant = syntax.items.iter().find_map(|item| match item {
        Item::Const(constant) if constant.ident == name => Some(&*constant.expr),
        _ => None,
    });
    match constant {
        Some(Expr::Array(array)) => array.elems.iter().filter_map(string).collect(),
        _ => panic!("{file} has no array {name}"),
    }
}

/// Returns the variants of each enum of a file with their documentation, by the enum's name.
pub fn enums(file: &str) -> BTreeMap<String, Vec<(String, String)>> {
    let syntax = parse(file);
    let enums = syntax.items.iter().filter_map(|item| match item {
        Item::Enum(item) => {
            let variants =
                item.variants.iter().map(|variant| (variant.ident.to_string(), documentation(&variant.attrs)));
            Some((item.ident.to_string(), variants.collect()))
        }
        _ => None,
    });
    enums.collect()
}
