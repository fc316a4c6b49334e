//! Reads the owner from which a resource may take over databases, bucket and topics: the one that its annotation names,
//! and only if no resource of that name is active. Otherwise two resources that name each other would take turns
//! forever.

use kube::ResourceExt;

use crate::{
    cache::{Flow, Stores},
    crd::{ADOPT, ADOPT_FROM, OrderFlow, PAUSED, is_set},
    pipeline::Adoption,
};

/// Reads the annotations of `flow`.
pub fn read(flow: &OrderFlow, stores: &Stores) -> Adoption {
    among(&stores.flows.state(), flow)
}

fn among<T: AsRef<Flow>>(others: &[T], flow: &OrderFlow) -> Adoption {
    let outdated = flow.annotations().contains_key(ADOPT);
    let Some(named) = flow.annotations().get(ADOPT_FROM) else {
        return Adoption { outdated, ..Adoption::default() };
    };
    let unheeded = match named.split_once('/') {
        Some((namespace, name)) if ![namespace, name].contains(&"") && !name.contains('/') => {
            let is_active = |other: &Flow| {
                other.uid() != flow.uid()
                    && other.namespace().as_deref() == Some(namespace)
                    && other.name_any() == name
                    && !is_set(other, PAUSED)
            };
            others.iter().any(|other| is_active(other.as_ref())).then(|| {
                format!(
                    "{ADOPT_FROM} has no effect while {named} still exists: delete that OrderFlow with deletionPolicy \
                         Retain, or scale it to 0 and pause it"
                )
            })
        }
        _ => Some(format!("{ADOPT_FROM} has no effect: it must be NAMESPACE/NAME")),
    };
    Adoption { from: unheeded.is_none().then(|| named.clone()), unheeded, outdated }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::core::DeserializeGuard;
    use serde_json::json;

    use orderflow_provision::Adopt;

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
    fn only_an_inactive_owner_is_adopted_from() {
        let heir = flow("heir", &[(ADOPT_FROM, "shop/main")]);
        let adopt = |others: &[OrderFlow]| {
            let others: Vec<Arc<Flow>> =
                others.iter().cloned().map(|flow| Arc::new(DeserializeGuard(Ok(flow)))).collect();
            among(&others, &heir)
        };
        let allowed = |adoption: &Adoption| adoption.adopt() == Adopt::From("shop/main");
        assert!(allowed(&adopt(&[])) && allowed(&adopt(&[heir.clone(), flow("other", &[])])));
        assert!(allowed(&adopt(&[flow("main", &[(PAUSED, "true")])])));
        let refused = adopt(&[flow("main", &[])]);
        assert_eq!(refused.adopt(), Adopt::Nothing);
        assert!(refused.unheeded().unwrap().contains("while shop/main still exists"), "{refused:?}");
    }

    /// Allows a resource to move its own databases to another topic or bucket.
    #[test]
    fn a_resource_may_name_itself() {
        let main = flow("main", &[(ADOPT_FROM, "shop/main")]);
        let itself = [Arc::new(DeserializeGuard(Ok(main.clone())))];
        assert_eq!(among(&itself, &main).adopt(), Adopt::From("shop/main"));
    }

    #[test]
    fn an_annotation_without_a_valid_owner_has_no_effect() {
        for named in ["true", "", "main", "/main", "shop/", "a/b/c"] {
            let adoption = among::<Arc<Flow>>(&[], &flow("heir", &[(ADOPT_FROM, named)]));
            assert_eq!(adoption.adopt(), Adopt::Nothing, "{named:?}");
            assert!(adoption.unheeded().unwrap().contains("must be NAMESPACE/NAME"), "{named:?}");
        }
        let adoption = among::<Arc<Flow>>(&[], &flow("heir", &[(ADOPT, "true")]));
        assert_eq!(adoption.adopt(), Adopt::Nothing);
        assert!(adoption.outdated().is_some() && adoption.unheeded() == adoption.outdated());
        assert_eq!(among::<Arc<Flow>>(&[], &flow("heir", &[])), Adoption::default());
    }
}
