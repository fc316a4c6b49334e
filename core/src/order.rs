//! Orders, and the parser of requests: every [`NewOrder`] is valid.

use std::{borrow::Cow, cell::Cell, fmt};

use serde::{
    Deserializer, Serialize,
    de::{self, DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    Money, Timestamp,
    field::{OrderId, ProductName, Quantity, UserId},
    receipt_key,
};

/// A field of a request and the rule that its value broke.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Name of the field, as the client wrote it.
    pub field: &'static str,
    /// The rule, as a sentence without its subject: `must be greater than 0`.
    pub detail: Cow<'static, str>,
}

/// A reason to reject a request body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// The body is not a single JSON object in the expected form. Has the field that was being read, if any.
    Malformed { field: Option<&'static str>, detail: String },
    /// Fields of the JSON object break rules. Has every violation, in the order of the fields.
    Fields(Vec<Violation>),
}

/// A valid order in a request, before it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOrder {
    pub user_id: UserId,
    pub product_name: ProductName,
    pub quantity: Quantity,
    pub price: Money,
}

/// A stored order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub id: OrderId,
    pub user_id: UserId,
    pub product_name: ProductName,
    pub quantity: Quantity,
    /// Price of one unit.
    pub price: Money,
    pub status: Cow<'static, str>,
    pub receipt_s3_key: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl NewOrder {
    /// Reads the body of `POST /api/orders`: one JSON object. Ignores unknown fields; refuses a field that appears
    /// twice, and text after the object.
    pub fn parse(body: &[u8]) -> Result<Self, Invalid> {
        let reading = Cell::new(None);
        let mut json = serde_json::Deserializer::from_slice(body);
        let fields = FieldsSeed { reading: &reading }.deserialize(&mut json).and_then(|fields| {
            json.end()?;
            Ok(fields)
        });
        let fields = fields.map_err(|error| Invalid::Malformed { field: reading.get(), detail: error.to_string() })?;

        let mut violations = Vec::new();
        let mut check = |field, violation: Cow<'static, str>| violations.push(Violation { field, detail: violation });
        let user_id = parse_text(fields.user_id).and_then(UserId::parse).map_err(|rule| check("user_id", rule)).ok();
        let product_name = parse_text(fields.product_name)
            .and_then(ProductName::parse)
            .map_err(|rule| check("product_name", rule))
            .ok();
        let quantity = require(fields.quantity)
            .and_then(|raw| Quantity::parse(raw.get()))
            .map_err(|rule| check("quantity", rule))
            .ok();
        let price = require(fields.price)
            .and_then(|raw| Money::parse_price(raw.get()).map_err(|error| error.to_string().into()))
            .map_err(|rule| check("price", rule))
            .ok();
        if let (Some(price), Some(quantity)) = (price, quantity)
            && price.times(quantity.get()).is_none()
        {
            check("quantity", "times price must be at most 10000000000000".into());
        }
        match (user_id, product_name, quantity, price) {
            (Some(user_id), Some(product_name), Some(quantity), Some(price)) if violations.is_empty() => {
                Ok(Self { user_id, product_name, quantity, price })
            }
            _ => Err(Invalid::Fields(violations)),
        }
    }

    /// Makes the order with this `id` and the creation time `now`.
    pub fn into_order(self, id: OrderId, now: Timestamp) -> Order {
        Order {
            receipt_s3_key: receipt_key::key(&self.user_id, id),
            id,
            user_id: self.user_id,
            product_name: self.product_name,
            quantity: self.quantity,
            price: self.price,
            status: Cow::Borrowed(Order::CREATED),
            created_at: now,
            updated_at: now,
        }
    }
}

impl Order {
    /// The status of a stored order.
    pub const CREATED: &'static str = "created";

    pub fn total(&self) -> Money {
        self.price.times(self.quantity.get()).unwrap_or(Money::MAX_TOTAL)
    }
}

fn require(raw: Option<&RawValue>) -> Result<&RawValue, Cow<'static, str>> {
    raw.filter(|raw| raw.get() != "null").ok_or("is required".into())
}

fn parse_text(raw: Option<&RawValue>) -> Result<String, Cow<'static, str>> {
    let raw = require(raw)?;
    if !raw.get().starts_with('"') {
        return Err("must be a string".into());
    }
    serde_json::from_str(raw.get()).map_err(|_| "must be a string of valid Unicode".into())
}

/// The raw fields of the body. They are parsed one by one, so that each error names its field.
#[derive(Default)]
struct Fields<'body> {
    user_id: Option<&'body RawValue>,
    product_name: Option<&'body RawValue>,
    quantity: Option<&'body RawValue>,
    price: Option<&'body RawValue>,
}

/// Reads [`Fields`] and remembers the field that is being read, so that an error inside it names the field.
struct FieldsSeed<'cell> {
    reading: &'cell Cell<Option<&'static str>>,
}

impl<'body> DeserializeSeed<'body> for FieldsSeed<'_> {
    type Value = Fields<'body>;

    fn deserialize<D: Deserializer<'body>>(self, deserializer: D) -> Result<Fields<'body>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'body> Visitor<'body> for FieldsSeed<'_> {
    type Value = Fields<'body>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with user_id, product_name, quantity and price")
    }

    fn visit_map<A: MapAccess<'body>>(self, mut map: A) -> Result<Fields<'body>, A::Error> {
        let mut fields = Fields::default();
        while let Some(name) = map.next_key::<Cow<'body, str>>()? {
            let (name, field) = match &*name {
                "user_id" => ("user_id", &mut fields.user_id),
                "product_name" => ("product_name", &mut fields.product_name),
                "quantity" => ("quantity", &mut fields.quantity),
                "price" => ("price", &mut fields.price),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            self.reading.set(Some(name));
            if field.is_some() {
                return Err(de::Error::duplicate_field(name));
            }
            *field = Some(map.next_value()?);
            self.reading.set(None);
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(body: &str) -> Vec<(&'static str, String)> {
        match NewOrder::parse(body.as_bytes()) {
            Err(Invalid::Fields(violations)) => {
                violations.into_iter().map(|violation| (violation.field, violation.detail.into_owned())).collect()
            }
            other => panic!("{body} gave {other:?}"),
        }
    }

    fn with(field: &str, value: &str) -> String {
        let value_of = |name: &str, usual: &str| if name == field { value.to_owned() } else { usual.to_owned() };
        format!(
            r#"{{"user_id":{},"product_name":{},"quantity":{},"price":{}}}"#,
            value_of("user_id", "\"alice\""),
            value_of("product_name", "\"Keyboard\""),
            value_of("quantity", "2"),
            value_of("price", "149.99"),
        )
    }

    #[test]
    fn a_valid_order_is_parsed_and_unknown_fields_are_ignored() {
        let order = NewOrder::parse(
            br#" {"note":{"a":[1]},"user_id":"al\u0069ce","product_name":"K","quantity":2,"price":149.90} "#,
        )
        .unwrap();
        assert_eq!(order.user_id.as_str(), "alice");
        assert_eq!(order.price, Money::from_cents(14990));
    }

    #[test]
    fn each_broken_rule_is_named_with_its_field() {
        let long_user = format!("\"{}\"", "é".repeat(101));
        let long_product = format!("\"{}\"", "é".repeat(256));
        for (field, value, rule) in [
            ("user_id", "\"\"", "must not be empty"),
            ("user_id", "5", "must be a string"),
            ("user_id", "null", "is required"),
            ("user_id", &long_user, "must have at most 100 characters"),
            ("user_id", r#""a\u0000b""#, "must have no control characters"),
            ("user_id", r#""a\u0085b""#, "must have no control characters"),
            ("user_id", r#""\ud800""#, "must be a string of valid Unicode"),
            ("product_name", &long_product, "must have at most 255 characters"),
            ("quantity", "0", "must be a whole number from 1 to 2147483647"),
            ("quantity", "-1", "must be a whole number from 1 to 2147483647"),
            ("quantity", "1.5", "must be a whole number from 1 to 2147483647"),
            ("quantity", "1e-1", "must be a whole number from 1 to 2147483647"),
            ("quantity", "1e10", "must be a whole number from 1 to 2147483647"),
            ("quantity", "2147483648", "must be a whole number from 1 to 2147483647"),
            ("quantity", "9223372036854775808", "must be a whole number from 1 to 2147483647"),
            ("quantity", "\"2\"", "must be a whole number from 1 to 2147483647"),
            ("price", "\"149.99\"", "must be a JSON number"),
            ("price", "[1]", "must be a JSON number"),
            ("price", "149.999", "must have at most two decimals"),
        ] {
            assert_eq!(violations(&with(field, value)), [(field, rule.to_owned())], "{field} {value}");
        }
        assert_eq!(violations("{}").len(), 4);
        let too_much = r#"{"user_id":"a","product_name":"p","quantity":2147483647,"price":99999999.99}"#;
        assert_eq!(violations(too_much)[0].0, "quantity");
    }

    #[test]
    fn equal_numbers_are_one_order_in_every_notation() {
        let order = NewOrder::parse(with("quantity", "2").as_bytes()).unwrap();
        for (field, value) in [("quantity", "2.0"), ("quantity", "0.2e1"), ("price", "149.9900"), ("price", "1.4999E2")]
        {
            assert_eq!(NewOrder::parse(with(field, value).as_bytes()), Ok(order.clone()), "{field} {value}");
        }
    }

    #[test]
    fn the_longest_texts_are_valid() {
        let user = format!("\"{}\"", "😀".repeat(100));
        assert!(NewOrder::parse(with("user_id", &user).as_bytes()).is_ok());
    }

    #[test]
    fn a_body_that_is_not_one_object_is_malformed_and_the_error_names_the_field() {
        for (body, field) in [
            (String::new(), None),
            ("[]".to_owned(), None),
            ("\"x\"".to_owned(), None),
            (with("price", "NaN"), Some("price")),
            (with("price", "01"), Some("price")),
            (with("user_id", "\"a\nb\""), Some("user_id")),
            (with("price", "1") + "{}", None),
            (with("price", "1,\"price\":2"), Some("price")),
            (r#"{"user_id":"alice","quanti"#.to_owned(), None),
            (r#"{"user_id":"ali"#.to_owned(), Some("user_id")),
        ] {
            match NewOrder::parse(body.as_bytes()) {
                Err(Invalid::Malformed { field: named, .. }) => assert_eq!(named, field, "{body}"),
                other => panic!("{body} gave {other:?}"),
            }
        }
        assert!(NewOrder::parse(b"{\"user_id\":\"\xff\"}").is_err());
    }
}
