//! Decides which consumer groups belong to an owner. A group has no metadata for an owner, so its name must begin with
//! it.

/// Returns true if the group's name is `<namespace>.<name>` or `<namespace>/<name>`, or begins with one of them and a
/// separator. A hyphen does not count: `shop.main-2` belongs to `shop/main-2`.
pub fn belongs_to(group: &str, owner: &str) -> bool {
    let rest = group.strip_prefix(owner).or_else(|| group.strip_prefix(&owner.replacen('/', ".", 1)));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/', ':', '_']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_belongs_to_the_owner_that_its_name_begins_with() {
        for group in ["shop.main", "shop/main", "shop.main.v2", "shop/main/v2", "shop.main_2"] {
            assert!(belongs_to(group, "shop/main"), "{group}");
        }
        for group in ["", "shop", "shop.mai", "shop.main-2", "shop.main2", "billing", "main", "xshop.main", "shop-main"]
        {
            assert!(!belongs_to(group, "shop/main"), "{group}");
        }
    }
}
