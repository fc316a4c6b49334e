//! The owner from whom a resource may take databases and bucket over: the one that its annotation names, and only if no
//! resource of that name is at work. Otherwise two resources that name each other would take turns for ever.

use kube::ResourceExt;
use orderflow_provision::Adopt;

use crate::{
    controller::{Flow, Live},
    crd::{ADOPT, ADOPT_FROM, OrderFlow, PAUSED},
};

/// What the annotations of a resource say about taking things over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    from: Option<String>,
    /// Why an annotation has no effect.
    unheeded: Option<String>,
    /// The annotation that names no owner is there.
    outdated: bool,
}

/// Stays for one version, as a warning to resources that still have the annotation.
const OUTDATED: &str = "the annotation orderflow.dev/adopt has no effect any more: remove it, and to take something over name \
                        its owner, orderflow.dev/adopt-from: NAMESPACE/NAME";

impl Adoption {
    pub fn of(flow: &OrderFlow, live: &Live) -> Self {
        Self::among(&live.flows.state(), flow)
    }

    fn among<T: AsRef<Flow>>(others: &[T], flow: &OrderFlow) -> Self {
        let outdated = flow.annotations().contains_key(ADOPT);
        let Some(named) = flow.annotations().get(ADOPT_FROM) else {
            return Self { outdated, ..Self::default() };
        };
        let unheeded = match named.split_once('/') {
            Some((namespace, name)) if ![namespace, name].contains(&"") && !name.contains('/') => {
                let is_at_work = |other: &Flow| {
                    other.uid() != flow.uid()
                        && other.namespace().as_deref() == Some(namespace)
                        && other.name_any() == name
                        && !super::is_set(other, PAUSED)
                };
                others.iter().any(|other| is_at_work(other.as_ref())).then(|| {
                    format!(
                        "{ADOPT_FROM} has no effect while {named} still exists: delete that OrderFlow with deletionPolicy \
                         Retain, or pause it"
                    )
                })
            }
            _ => Some(format!("{ADOPT_FROM} has no effect: it must be NAMESPACE/NAME")),
        };
        Self { from: unheeded.is_none().then(|| named.clone()), unheeded, outdated }
    }

    pub fn adopt(&self) -> Adopt<'_> {
        Adopt::from(self.from.as_deref())
    }

    /// Why nothing is taken over although an annotation asks for it.
    pub fn unheeded(&self) -> Option<&str> {
        self.unheeded.as_deref().or(self.outdated())
    }

    /// The warning for whoever still has the annotation that names no owner.
    pub fn outdated(&self) -> Option<&'static str> {
        self.outdated.then_some(OUTDATED)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::core::DeserializeGuard;
    use serde_json::json;

    use super::*;
    use crate::build::fixture;

    fn flow(name: &str, annotations: &[(&str, &str)]) -> OrderFlow {
        let mut flow = OrderFlow::new(name, fixture::spec(&json!({})));
        flow.metadata.namespace = Some("shop".to_owned());
        flow.metadata.uid = Some(name.to_owned());
        flow.annotations_mut().extend(annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        flow
    }

    #[test]
    fn the_named_owner_is_adopted_from_unless_it_is_at_work() {
        let heir = flow("heir", &[(ADOPT_FROM, "shop/main")]);
        let adopt = |others: &[OrderFlow]| {
            let others: Vec<Arc<Flow>> =
                others.iter().cloned().map(|flow| Arc::new(DeserializeGuard(Ok(flow)))).collect();
            Adoption::among(&others, &heir)
        };
        let allowed = |adoption: &Adoption| adoption.adopt() == Adopt::From("shop/main");
        assert!(allowed(&adopt(&[])) && allowed(&adopt(&[heir.clone(), flow("other", &[])])));
        assert!(allowed(&adopt(&[flow("main", &[(PAUSED, "true")])])));
        let refused = adopt(&[flow("main", &[])]);
        assert_eq!(refused.adopt(), Adopt::Nothing);
        assert!(refused.unheeded().unwrap().contains("while shop/main still exists"), "{refused:?}");
    }

    /// To take one's own databases along to another topic or bucket.
    #[test]
    fn a_resource_may_name_itself() {
        let main = flow("main", &[(ADOPT_FROM, "shop/main")]);
        let itself = [Arc::new(DeserializeGuard(Ok(main.clone())))];
        assert_eq!(Adoption::among(&itself, &main).adopt(), Adopt::From("shop/main"));
    }

    #[test]
    fn an_annotation_that_names_nobody_has_no_effect() {
        for named in ["true", "", "main", "/main", "shop/", "a/b/c"] {
            let adoption = Adoption::among::<Arc<Flow>>(&[], &flow("heir", &[(ADOPT_FROM, named)]));
            assert_eq!(adoption.adopt(), Adopt::Nothing, "{named:?}");
            assert!(adoption.unheeded().unwrap().contains("must be NAMESPACE/NAME"), "{named:?}");
        }
        let adoption = Adoption::among::<Arc<Flow>>(&[], &flow("heir", &[(ADOPT, "true")]));
        assert_eq!((adoption.adopt(), adoption.unheeded()), (Adopt::Nothing, Some(OUTDATED)));
        assert_eq!(Adoption::among::<Arc<Flow>>(&[], &flow("heir", &[])), Adoption::default());
    }
}
