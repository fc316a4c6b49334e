//! Checks that no two modules of a crate import each other, directly or in a longer circle.
//!
//! A node is a file. An edge leads from a file to each other file of its crate that a `use` in it takes an item from;
//! re-exports are followed to the file that defines the item. Tests do not count. A module and its direct child may import
//! each other: the parent is the facade of its children.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write,
};

use common::{Module, PRODUCT, is_test, modules};
use syn::{Item, ItemUse, UseTree, visit::Visit};

/// The crates whose modules are checked.
fn crates() -> Vec<&'static str> {
    PRODUCT.into_iter().chain(["testbed", "dev", "proof", "bench"]).collect()
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let mut report = String::new();
    for package in crates() {
        let imports = Imports::of(&modules(package));
        for knot in imports.knots() {
            let _ = writeln!(report, "{package}: {}", imports.describe(&knot));
        }
    }
    assert!(report.is_empty(), "these files import each other in a circle:\n{report}");
}

/// Returns the crates of the workspace, in the order of `Cargo.toml`.
fn members() -> Vec<String> {
    let manifest = common::read("Cargo.toml");
    let list =
        manifest.split_once("members = [").and_then(|(_, rest)| rest.split_once(']')).expect("a list of members").0;
    list.split(',').map(|member| member.trim().trim_matches('"').to_owned()).collect()
}

#[test]
fn each_crate_depends_only_on_crates_listed_before_it() {
    let members = members();
    for (position, member) in members.iter().enumerate() {
        let manifest = common::read(&format!("{member}/Cargo.toml"));
        let dependencies = manifest.split_once("[dependencies]").map_or("", |(_, rest)| rest);
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        let used = dependencies.lines().filter_map(|line| line.strip_prefix("orderflow-"));
        for used in used.map(|line| line.split(['.', ' ']).next().unwrap_or_default()) {
            let before = &members[..position];
            assert!(
                before.iter().any(|other| other == used),
                "{member} depends on {used}, which is not listed before it"
            );
        }
    }
}

/// A `use` that is spread out: one path, and the name that it binds. `None`: a glob.
#[derive(Clone, Debug)]
struct Import {
    path: Vec<String>,
    name: Option<String>,
}

/// A module in the tree of a crate. One that is written inside of a file shares the file.
#[derive(Default)]
struct Node {
    file: usize,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    items: BTreeSet<String>,
    imports: Vec<Import>,
}

/// Files that import each other, and the shortest circle among them.
struct Knot {
    files: BTreeSet<usize>,
    circle: Vec<usize>,
}

/// The files of a crate, and which file imports what from which.
struct Imports {
    files: Vec<String>,
    /// The files of a module and of its direct child.
    facades: BTreeSet<(usize, usize)>,
    /// Importing file, imported file, and the imported names.
    edges: BTreeMap<(usize, usize), BTreeSet<String>>,
}

impl Imports {
    fn of(modules: &[Module]) -> Self {
        let mut tree = Tree::default();
        for (file, module) in modules.iter().enumerate() {
            let parent = module.path.split_last().map(|(_, parent)| tree.find(parent));
            let node = tree.add(file, parent, module.path.last().map(String::as_str));
            tree.read(node, &module.syntax.items);
        }
        let mut imports = Self {
            files: modules.iter().map(|module| module.file.clone()).collect(),
            facades: BTreeSet::new(),
            edges: BTreeMap::new(),
        };
        for (node, module) in tree.nodes.iter().enumerate() {
            if let Some(parent) = module.parent {
                let parent = tree.nodes[parent].file;
                imports.facades.extend([(module.file, parent), (parent, module.file)]);
            }
            for import in &module.imports {
                let found = tree.resolve(node, &import.path, &mut Vec::new());
                if let Some(file) = found.filter(|file| *file != module.file) {
                    let name = import.path.join("::");
                    imports.edges.entry((module.file, file)).or_default().insert(name);
                }
            }
        }
        imports
    }

    /// Returns the groups of files that import each other.
    fn knots(&self) -> Vec<Knot> {
        let next = |file: usize| {
            let edges = self.edges.keys().filter(move |edge| edge.0 == file && !self.facades.contains(edge));
            edges.map(|edge| edge.1)
        };
        let reached = |start: usize| {
            let (mut reached, mut waiting) = (BTreeSet::new(), VecDeque::from([start]));
            while let Some(file) = waiting.pop_front() {
                waiting.extend(next(file).filter(|file| reached.insert(*file)));
            }
            reached
        };
        let reached: Vec<BTreeSet<usize>> = (0..self.files.len()).map(reached).collect();
        let mut seen: BTreeSet<usize> = BTreeSet::new();
        let mut knots = Vec::new();
        for file in 0..self.files.len() {
            if seen.contains(&file) || !reached[file].contains(&file) {
                continue;
            }
            let group: BTreeSet<usize> =
                reached[file].iter().copied().filter(|other| reached[*other].contains(&file)).collect();
            seen.extend(&group);
            let shortest = group.iter().filter_map(|start| shortest_circle(*start, &group, &next)).min_by_key(Vec::len);
            knots.extend(shortest.map(|circle| Knot { files: group, circle }));
        }
        knots
    }

    fn describe(&self, Knot { files, circle }: &Knot) -> String {
        let mut text = self.files[circle[0]].clone();
        for (from, to) in circle.iter().zip(circle.iter().cycle().skip(1)) {
            let names: Vec<&str> = self.edges[&(*from, *to)].iter().map(String::as_str).collect();
            let _ = write!(text, " -({})-> {}", names.join(", "), self.files[*to]);
        }
        let others: Vec<&str> =
            files.iter().filter(|file| !circle.contains(file)).map(|file| self.files[*file].as_str()).collect();
        if !others.is_empty() {
            let _ = write!(text, "; in circles with these: {}", others.join(", "));
        }
        text
    }
}

fn shortest_circle<I: Iterator<Item = usize>>(
    start: usize,
    group: &BTreeSet<usize>,
    next: &impl Fn(usize) -> I,
) -> Option<Vec<usize>> {
    let mut waiting = VecDeque::from([vec![start]]);
    let mut seen = BTreeSet::new();
    while let Some(path) = waiting.pop_front() {
        for file in next(*path.last()?).filter(|file| group.contains(file)) {
            if file == start {
                return Some(path);
            }
            if seen.insert(file) {
                waiting.push_back([path.clone(), vec![file]].concat());
            }
        }
    }
    None
}

#[derive(Default)]
struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    fn find(&self, path: &[String]) -> usize {
        path.iter().fold(0, |node, name| self.nodes[node].children[name])
    }

    fn add(&mut self, file: usize, parent: Option<usize>, name: Option<&str>) -> usize {
        let node = self.nodes.len();
        self.nodes.push(Node { file, parent, ..Node::default() });
        if let (Some(parent), Some(name)) = (parent, name) {
            self.nodes[parent].children.insert(name.to_owned(), node);
        }
        node
    }

    /// Reads the items of a module, and the modules that are written inside of it.
    fn read(&mut self, node: usize, items: &[Item]) {
        for item in items {
            match item {
                Item::Mod(module) if !is_test(&module.attrs) => {
                    if let Some((_, items)) = &module.content {
                        let child = self.add(self.nodes[node].file, Some(node), Some(&module.ident.to_string()));
                        self.read(child, items);
                    }
                }
                Item::Mod(_) => {}
                item => {
                    self.nodes[node].items.extend(name_of(item));
                    let mut uses = Uses::default();
                    uses.visit_item(item);
                    self.nodes[node].imports.extend(uses.0);
                }
            }
        }
    }

    /// Returns the file that defines what `path` names in the module `node`; `None` outside of the crate.
    fn resolve(&self, node: usize, path: &[String], asked: &mut Vec<(usize, Vec<String>)>) -> Option<usize> {
        // Two modules may take all from each other, and a name may be imported from a crate of the same name.
        if asked.len() > 50 || asked.iter().any(|(other, names)| *other == node && names == path) {
            return None;
        }
        asked.push((node, path.to_vec()));
        let module = &self.nodes[node];
        let Some((name, rest)) = path.split_first() else { return Some(module.file) };
        match name.as_str() {
            "crate" => return self.resolve(0, rest, asked),
            "self" => return self.resolve(node, rest, asked),
            "super" => return self.resolve(module.parent?, rest, asked),
            _ => {}
        }
        if let Some(child) = module.children.get(name) {
            return self.resolve(*child, rest, asked);
        }
        if module.items.contains(name) {
            return Some(module.file);
        }
        let named = module.imports.iter().filter(|import| import.name.as_ref() == Some(name));
        let named = named.map(|import| [import.path.as_slice(), rest].concat());
        let globs = module.imports.iter().filter(|import| import.name.is_none());
        let mut globs = globs.filter_map(|import| self.module(node, &import.path));
        let mut named = named.map(|path| self.resolve(node, &path, asked));
        if let Some(found) = named.find(Option::is_some) {
            return found;
        }
        globs.find_map(|module| self.resolve(module, path, asked))
    }

    /// Returns the module that `path` names, without a look at imports.
    fn module(&self, node: usize, path: &[String]) -> Option<usize> {
        path.iter().try_fold(node, |node, name| match name.as_str() {
            "crate" => Some(0),
            "self" => Some(node),
            "super" => self.nodes[node].parent,
            name => self.nodes[node].children.get(name).copied(),
        })
    }
}

fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        _ => return None,
    };
    Some(name.to_string())
}

/// Collects the imports of an item, those inside of functions too.
#[derive(Default)]
struct Uses(Vec<Import>);

impl<'ast> Visit<'ast> for Uses {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if !is_test(&item.attrs) && item.leading_colon.is_none() {
            spread(&item.tree, &[], &mut self.0);
        }
    }

    fn visit_item_mod(&mut self, _: &'ast syn::ItemMod) {}
}

fn spread(tree: &UseTree, before: &[String], imports: &mut Vec<Import>) {
    let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
    let import = |path: Vec<String>, name: &syn::Ident| Import { path, name: Some(name.to_string()) };
    match tree {
        UseTree::Path(path) => spread(&path.tree, &with(&path.ident), imports),
        UseTree::Group(group) => group.items.iter().for_each(|tree| spread(tree, before, imports)),
        UseTree::Glob(_) => imports.push(Import { path: before.to_vec(), name: None }),
        // `use super::shard::{self, …}` binds the module's own name.
        UseTree::Name(name) if name.ident == "self" => {
            imports.push(Import { path: before.to_vec(), name: before.last().cloned() });
        }
        UseTree::Rename(rename) if rename.ident == "self" => imports.push(import(before.to_vec(), &rename.rename)),
        UseTree::Name(name) => imports.push(import(with(&name.ident), &name.ident)),
        UseTree::Rename(rename) => imports.push(import(with(&rename.ident), &rename.rename)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let modules: Vec<Module> = files
            .iter()
            .map(|(path, text)| Module {
                path: path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect(),
                file: if path.is_empty() { "lib".to_owned() } else { (*path).to_owned() },
                syntax: syn::parse_file(text).unwrap(),
            })
            .collect();
        let imports = Imports::of(&modules);
        imports.knots().iter().map(|knot| imports.describe(knot)).collect()
    }

    #[test]
    fn two_that_import_each_other_are_a_circle() {
        let files = [
            ("", "mod a; mod b;"),
            ("a", "use crate::b::B; pub struct A;"),
            ("b", "pub struct B; fn f() { use super::a::A; }"),
        ];
        assert_eq!(circles(&files), ["a -(crate::b::B)-> b -(super::a::A)-> a"]);
    }

    #[test]
    fn a_re_export_leads_to_the_file_that_defines_the_item() {
        let files = [
            ("", "mod a; mod b; mod c; pub use a::A;"),
            ("a", "use crate::b::B; pub struct A;"),
            ("b", "pub use crate::c::*;"),
            ("c", "use crate::A; pub struct B;"),
        ];
        assert_eq!(circles(&files), ["a -(crate::b::B)-> c -(crate::A)-> a"]);
    }

    #[test]
    fn a_facade_and_its_children_are_no_circle_and_tests_do_not_count() {
        let files = [
            ("", "mod a; mod b;"),
            ("a", "mod x; mod y; use x::X; pub struct A;"),
            ("a::x", "use super::{A, y::Y}; pub struct X;"),
            ("a::y", "pub struct Y; #[cfg(test)] mod tests { use super::super::x::X; }"),
            ("b", "use crate::a::A; use std::fmt; use a::nothing;"),
        ];
        assert_eq!(circles(&files), Vec::<String>::new());
    }
}
