//! Reads the bounds from the constants of the product's sources.

use std::{collections::BTreeMap, time::Duration};

use orderflow_reference::bounds::{self, Bound, Value};
use syn::{Attribute, BinOp, Expr, ExprBinary, ExprCall, ExprLit, Ident, Lit, Type, UnOp, visit::Visit};

use crate::common;

/// Documented numbers that limit nothing, beside ports and what is written in another base than ten.
const NO_BOUNDS: [&str; 1] = ["NONROOT"];

pub fn page() -> String {
    let crates: Vec<(&str, Vec<Bound>)> =
        common::PRODUCT.into_iter().map(|package| (package, bounds(package))).collect();
    bounds::page(&crates)
}

fn bounds(package: &str) -> Vec<Bound> {
    common::modules(package).iter().flat_map(|module| bounds_of(&module.file, &module.syntax)).collect()
}

/// Returns the bounds of one file. A constant without documentation is not on the page.
fn bounds_of(file: &str, syntax: &syn::File) -> Vec<Bound> {
    let mut constants = Constants::default();
    constants.visit_file(syntax);
    let values: BTreeMap<String, &Expr> =
        constants.0.iter().map(|constant| (constant.name.to_string(), constant.value)).collect();
    let bounds = constants.0.iter().filter_map(|constant| {
        let name = constant.name.to_string();
        let meaning = first_sentence(&common::documentation(constant.attributes))?;
        if NO_BOUNDS.contains(&name.as_str()) || name.ends_with("_PORT") {
            return None;
        }
        let value = value(constant.type_of, constant.value, &values)?;
        Some(Bound { meaning, value, name, file: file.to_owned() })
    });
    bounds.collect()
}

struct Constant<'ast> {
    attributes: &'ast [Attribute],
    name: &'ast Ident,
    type_of: &'ast Type,
    value: &'ast Expr,
}

/// Collects all constants, those of functions and types too, without those of tests.
#[derive(Default)]
struct Constants<'ast>(Vec<Constant<'ast>>);

impl<'ast> Visit<'ast> for Constants<'ast> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !common::is_test(&module.attrs) {
            syn::visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.0.push(Constant { attributes: &item.attrs, name: &item.ident, type_of: &item.ty, value: &item.expr });
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.0.push(Constant { attributes: &item.attrs, name: &item.ident, type_of: &item.ty, value: &item.expr });
    }
}

/// Returns the first sentence without its full stop, and without the brackets of links.
fn first_sentence(text: &str) -> Option<String> {
    let sentence = text.split(". ").next()?.trim_end_matches('.');
    let sentence = sentence.replace("[`", "`").replace("`]", "`");
    (!sentence.is_empty()).then_some(sentence)
}

const NUMBERS: [&str; 14] =
    ["i8", "i16", "i32", "i64", "i128", "isize", "u8", "u16", "u32", "u64", "u128", "usize", "f32", "f64"];

fn value(type_of: &Type, value: &Expr, known: &BTreeMap<String, &Expr>) -> Option<Value> {
    let Type::Path(path) = type_of else { return None };
    let type_name = path.path.segments.last()?.ident.to_string();
    match evaluate(value, known)? {
        Number::Time(time) if type_name == "Duration" => Some(Value::Time(time)),
        Number::Whole(number) if NUMBERS.contains(&type_name.as_str()) => {
            Some(if is_of_bytes(value) { Value::Size(number) } else { Value::Count(number) })
        }
        Number::Fraction(number) if NUMBERS.contains(&type_name.as_str()) => Some(Value::Fraction(number)),
        _ => None,
    }
}

enum Number {
    Whole(i128),
    Fraction(f64),
    Time(Duration),
}

/// Evaluates literals, sums, products, shifts, constants of the same file and `Duration::from_…`.
fn evaluate(expression: &Expr, known: &BTreeMap<String, &Expr>) -> Option<Number> {
    match expression {
        // A key of a lock or a mode of a file is written in another base.
        Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) if number.token().to_string().starts_with(['0']) => {
            (number.base10_digits() == "0").then_some(Number::Whole(0))
        }
        Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) => number.base10_parse().ok().map(Number::Whole),
        Expr::Lit(ExprLit { lit: Lit::Float(number), .. }) => number.base10_parse().ok().map(Number::Fraction),
        Expr::Paren(inner) => evaluate(&inner.expr, known),
        Expr::Unary(unary) if matches!(unary.op, UnOp::Neg(_)) => match evaluate(&unary.expr, known)? {
            Number::Whole(number) => Some(Number::Whole(-number)),
            _ => None,
        },
        Expr::Binary(ExprBinary { left, op, right, .. }) => {
            let (Number::Whole(left), Number::Whole(right)) = (evaluate(left, known)?, evaluate(right, known)?) else {
                return None;
            };
            match op {
                BinOp::Add(_) => left.checked_add(right),
                BinOp::Sub(_) => left.checked_sub(right),
                BinOp::Mul(_) => left.checked_mul(right),
                BinOp::Div(_) => left.checked_div(right),
                BinOp::Shl(_) => left.checked_shl(right.try_into().ok()?),
                _ => None,
            }
            .map(Number::Whole)
        }
        Expr::Path(path) => {
            match &path.path.segments.iter().map(|segment| segment.ident.to_string()).collect::<Vec<_>>()[..] {
                [number, name] if number == "i32" && name == "MAX" => Some(Number::Whole(i32::MAX.into())),
                [.., name] => evaluate(known.get(name)?, known),
                [] => None,
            }
        }
        Expr::Call(ExprCall { func, args, .. }) => {
            let Expr::Path(function) = &**func else { return None };
            let function = function.path.segments.last()?.ident.to_string();
            let Number::Whole(number) = evaluate(args.first()?, known)? else { return None };
            let number = u64::try_from(number).ok()?;
            let time = match function.as_str() {
                "from_secs" => Duration::from_secs(number),
                "from_millis" => Duration::from_millis(number),
                "from_micros" => Duration::from_micros(number),
                "from_mins" => Duration::from_mins(number),
                "from_hours" => Duration::from_hours(number),
                _ => return None,
            };
            Some(Number::Time(time))
        }
        _ => None,
    }
}

/// Says whether a value is a product with 1024, as only numbers of bytes are.
fn is_of_bytes(expression: &Expr) -> bool {
    let is_kibi = |expression: &Expr| matches!(expression, Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) if number.base10_digits() == "1024");
    match expression {
        Expr::Binary(ExprBinary { left, op: BinOp::Mul(_), right, .. }) => {
            is_kibi(left) || is_kibi(right) || is_of_bytes(left) || is_of_bytes(right)
        }
        Expr::Binary(ExprBinary { left, right, .. }) => is_of_bytes(left) || is_of_bytes(right),
        _ => false,
    }
}

#[test]
fn a_documented_constant_is_read_and_a_test_s_is_not() {
    let text = r"
        /// The longest wait for `X`. It is long.
        const WAIT: Duration = Duration::from_secs(2 * 60);
        const UNDOCUMENTED: u8 = 1;
        /// The key of a lock.
        const LOCK: i64 = 0x6f72;
        /// A name.
        const NAME: &str = 'x';
        /// Half of it
        pub(crate) const HALF: usize = HOLDS / 2;
        struct S;
        impl S {
            /// The most bytes of [`S`].
            const HOLDS: usize = 64 * 1024;
        }
        #[cfg(test)]
        mod tests {
            /// A number in a test.
            const MORE: u8 = 2;
        }
    "
    .replace('\'', "\"");
    let bounds = bounds_of("file.rs", &syn::parse_file(&text).unwrap());
    let bound = |meaning: &str, value: Value, name: &str| Bound {
        meaning: meaning.to_owned(),
        value,
        name: name.to_owned(),
        file: "file.rs".to_owned(),
    };
    let expected = [
        bound("The longest wait for `X`", Value::Time(Duration::from_secs(120)), "WAIT"),
        bound("Half of it", Value::Count(32 * 1024), "HALF"),
        bound("The most bytes of `S`", Value::Size(64 * 1024), "HOLDS"),
    ];
    assert_eq!(bounds, expected);
}

/// A time always bounds something, so it belongs on the page.
#[test]
fn every_constant_that_is_a_time_is_on_the_page() {
    let mut missing = Vec::new();
    for module in common::PRODUCT.into_iter().flat_map(common::modules) {
        let shown = bounds_of(&module.file, &module.syntax);
        let mut constants = Constants::default();
        constants.visit_file(&module.syntax);
        for constant in &constants.0 {
            let is_time = matches!(constant.type_of, Type::Path(path) if path.path.is_ident("Duration"));
            if is_time && !shown.iter().any(|bound| constant.name == &bound.name) {
                missing.push(format!("{}: {}", module.file, constant.name));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "say what these bound, in a doc comment, with a value that can be read here:\n{}",
        missing.join("\n")
    );
}
