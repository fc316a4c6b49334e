//! The owners whose resources a claim may take over.

/// The owners whose resources a claim may take over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adopt<'a> {
    #[default]
    Nothing,
    /// Exactly this owner, `<namespace>/<name>`.
    From(&'a str),
    /// Any owner.
    Any,
}

impl<'a> Adopt<'a> {
    /// Allows `owner`, if there is one.
    pub fn from(owner: Option<&'a str>) -> Self {
        owner.map_or(Self::Nothing, Self::From)
    }

    /// Returns true if a resource that belongs to `owner` may be taken over.
    pub fn allows(self, owner: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::From(named) => named == owner,
            Self::Any => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_owner_can_be_adopted_from() {
        assert!(!Adopt::from(None).allows("shop/main"));
        assert!(Adopt::from(Some("shop/main")).allows("shop/main"));
        for other in ["shop/heir", "shop", "shop/main2", ""] {
            assert!(!Adopt::From("shop/main").allows(other), "{other:?}");
        }
        assert!(Adopt::Any.allows("shop/main"));
    }
}
