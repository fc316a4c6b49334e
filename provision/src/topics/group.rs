//! Which consumer groups are an owner's. A group has no place for an owner, so its name has to begin with it.

/// Whether the group's name is `<namespace>.<name>` or `<namespace>/<name>`, or begins with one of them and a separator. A
/// hyphen is none: `shop.main-2` is the group of another, `shop/main-2`.
pub fn belongs_to(group: &str, owner: &str) -> bool {
    let rest = group.strip_prefix(owner).or_else(|| group.strip_prefix(&owner.replacen('/', ".", 1)));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/', ':', '_']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_an_owners_by_the_beginning_of_its_name() {
        for group in ["shop.main", "shop/main", "shop.main.v2", "shop/main/v2", "shop.main_2"] {
            assert!(belongs_to(group, "shop/main"), "{group}");
        }
        for group in ["", "shop", "shop.mai", "shop.main-2", "shop.main2", "billing", "main", "xshop.main", "shop-main"]
        {
            assert!(!belongs_to(group, "shop/main"), "{group}");
        }
    }
}
