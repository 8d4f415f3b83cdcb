//! What the operator has written on a pod.

use aero_crds::annotations;
use ipnet::{IpNet, Ipv6Net};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use uuid::Uuid;

/// A pod's prefix and how to claim it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// UUID of the identity's DUID.
    pub client_id: Uuid,
    /// The pod's UID.
    pub pod_uid: Uuid,
    /// The mapping's epoch.
    pub epoch: u64,
    /// The prefix.
    pub prefix: Ipv6Net,
    /// Service prefixes of the link.
    pub asps: Vec<IpNet>,
    /// The link.
    pub link: String,
    /// The identity, for logs.
    pub identity: String,
}

/// What is written on a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet, or only for another pod.
    Nothing,
    /// No prefix, and why.
    Refused(String),
    /// A prefix.
    Assigned(Assignment),
    /// Something that cannot be read.
    Unreadable(String),
}

/// Reads a pod. Annotations that are for another UID mean nothing: they were copied, or are
/// about an earlier pod of the name.
pub fn read(pod: &Pod) -> Verdict {
    let get = |name: &str| pod.annotations().get(name).map(String::as_str);
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if uid.is_empty() || get(annotations::POD_UID) != Some(uid) {
        return Verdict::Nothing;
    }
    if let Some(why) = get(annotations::REFUSED) {
        return Verdict::Refused(why.to_string());
    }
    let parse = || -> Result<Option<Assignment>, String> {
        let Some(prefixes) = get(annotations::PREFIX) else { return Ok(None) };
        let field = |name: &str| get(name).ok_or_else(|| format!("{name} is missing"));
        let nets = |text: &str, name: &str| -> Result<Vec<IpNet>, String> {
            let parts = text.split(',').filter(|p| !p.is_empty());
            parts.map(|p| p.parse().map_err(|_| format!("{name}: {p:?} is no prefix"))).collect()
        };
        let prefix = nets(prefixes, annotations::PREFIX)?.into_iter().find_map(|p| match p {
            IpNet::V6(p) => Some(p),
            IpNet::V4(_) => None,
        });
        let prefix = prefix.ok_or("only IPv6 prefixes can be attached yet")?;
        Ok(Some(Assignment {
            client_id: Uuid::parse_str(field(annotations::CLIENT_ID)?)
                .map_err(|_| format!("{} is no UUID", annotations::CLIENT_ID))?,
            pod_uid: Uuid::parse_str(uid).map_err(|_| "the pod's UID is no UUID".to_string())?,
            epoch: field(annotations::EPOCH)?
                .parse()
                .map_err(|_| format!("{} is no number", annotations::EPOCH))?,
            prefix,
            asps: nets(field(annotations::ASPS)?, annotations::ASPS)?,
            link: field(annotations::LINK)?.to_string(),
            identity: field(annotations::IDENTITY)?.to_string(),
        }))
    };
    match parse() {
        Ok(Some(a)) => Verdict::Assigned(a),
        Ok(None) => Verdict::Nothing,
        Err(why) => Verdict::Unreadable(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(extra: &[(&str, &str)]) -> Pod {
        let uid = "8c1f0000-0000-4000-8000-000000000001";
        let mut annotations = serde_json::json!({
            "aerolink.dev/client": "web", "aerolink.dev/identity": "web-0",
            "aerolink.dev/client-id": "8c1f0000-0000-5000-8000-00000000000a",
            "aerolink.dev/prefix": "2001:db8:a:1::/64", "aerolink.dev/epoch": "4",
            "aerolink.dev/pod-uid": uid, "aerolink.dev/link": "default",
            "aerolink.dev/asps": "2001:db8:a::/48,192.0.2.0/24",
        });
        for (name, value) in extra {
            annotations[*name] = (*value).into();
        }
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web-0", "uid": uid, "annotations": annotations},
        }))
        .unwrap()
    }

    #[test]
    fn a_complete_set_of_annotations_is_an_assignment() {
        let Verdict::Assigned(a) = read(&pod(&[])) else { panic!("{:?}", read(&pod(&[]))) };
        assert_eq!(a.prefix.to_string(), "2001:db8:a:1::/64");
        assert_eq!((a.epoch, a.asps.len()), (4, 2));
    }

    #[test]
    fn annotations_for_another_pod_mean_nothing() {
        let other = "8c1f0000-0000-4000-8000-000000000002";
        assert_eq!(read(&pod(&[("aerolink.dev/pod-uid", other)])), Verdict::Nothing);
    }

    #[test]
    fn a_refusal_counts_before_all_else_and_nonsense_is_named() {
        let refused = read(&pod(&[("aerolink.dev/refused", "PrefixHeld: by another")]));
        assert_eq!(refused, Verdict::Refused("PrefixHeld: by another".into()));
        let Verdict::Unreadable(why) = read(&pod(&[("aerolink.dev/prefix", "nonsense")])) else {
            panic!("read all the same")
        };
        assert!(why.contains("\"nonsense\" is no prefix"), "{why}");
    }
}
