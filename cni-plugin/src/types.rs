//! The specification's types, as far as the plugin touches them. What it does not know it keeps.

use serde_json::{Map, Value, json};

/// Versions of configurations that are understood, oldest first.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The newest of them.
pub const NEWEST: &str = "1.1.0";

/// Error codes of the specification.
pub mod code {
    /// The configuration's version is not understood.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The container is unknown or does not exist.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Input or output failed.
    pub const IO_FAILURE: u32 = 5;
    /// The input is no JSON.
    pub const DECODING_FAILURE: u32 = 6;
    /// The configuration is wrong.
    pub const INVALID_CONFIG: u32 = 7;
    /// Passing; try again.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// The plugin cannot serve ADD now.
    pub const NOT_AVAILABLE: u32 = 50;
}

/// An error as the specification defines it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniError {
    /// Code.
    pub code: u32,
    /// What is wrong.
    pub msg: String,
    /// What may help.
    pub details: String,
}

impl CniError {
    /// An error.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// Adds what may help.
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// As printed on standard output.
    pub fn to_json(&self, version: &str) -> Value {
        let mut out = json!({"cniVersion": version, "code": self.code, "msg": self.msg});
        if !self.details.is_empty()
            && let Some(object) = out.as_object_mut()
        {
            object.insert("details".into(), self.details.clone().into());
        }
        out
    }
}

/// The result of an ADD: the result before ours with what was added, in the form of `version`.
/// `ifname` is the pod's primary interface, to which an address with interface -1 belongs.
pub fn result(before: Option<&Value>, added: Option<&Value>, ifname: &str, version: &str) -> Value {
    let mut out: Map<String, Value> =
        before.and_then(Value::as_object).cloned().unwrap_or_default();
    out.insert("cniVersion".into(), version.into());
    let list = |out: &Map<String, Value>, key: &str| -> Vec<Value> {
        out.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let mut interfaces = list(&out, "interfaces");
    let mut ips = list(&out, "ips");
    let mut routes = list(&out, "routes");
    let offset = i64::try_from(interfaces.len()).unwrap_or(i64::MAX);
    let primary = interfaces.iter().position(|i| {
        let is = |key: &str| i.get(key).and_then(Value::as_str);
        is("name") == Some(ifname) && is("sandbox").is_some_and(|s| !s.is_empty())
    });
    let items = |key: &str| added.and_then(|a| a.get(key)).and_then(Value::as_array);
    for interface in items("interfaces").into_iter().flatten() {
        interfaces.push(interface.clone());
    }
    for ip in items("ips").into_iter().flatten() {
        let mut ip = ip.clone();
        let of = ip.get("interface").and_then(Value::as_i64);
        let place = match of {
            Some(-1) => match primary.and_then(|p| i64::try_from(p).ok()) {
                Some(p) => Some(p),
                None => continue,
            },
            Some(n) => Some(n.saturating_add(offset)),
            None => None,
        };
        if let (Some(object), Some(place)) = (ip.as_object_mut(), place) {
            object.insert("interface".into(), place.into());
        }
        ips.push(ip);
    }
    for route in items("routes").into_iter().flatten() {
        routes.push(route.clone());
    }
    let old = version < "1.0.0";
    for ip in &mut ips {
        let address = ip.get("address").and_then(Value::as_str).unwrap_or_default();
        let family = if address.contains(':') { "6" } else { "4" };
        if let Some(object) = ip.as_object_mut() {
            // 1.0.0 dropped the family from addresses.
            if old {
                object.insert("version".into(), family.into());
            } else {
                object.remove("version");
            }
        }
    }
    if version < "1.1.0" {
        for interface in &mut interfaces {
            if let Some(object) = interface.as_object_mut() {
                object.remove("mtu");
            }
        }
        for route in &mut routes {
            if let Some(object) = route.as_object_mut() {
                object.remove("mtu");
            }
        }
    }
    for (key, list) in [("interfaces", interfaces), ("ips", ips), ("routes", routes)] {
        if !list.is_empty() {
            out.insert(key.into(), list.into());
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before() -> Value {
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "veth1", "mac": "a"}, {"name": "eth0", "mac": "b", "sandbox": "/n"}],
            "ips": [{"interface": 1, "address": "198.18.0.2/32", "gateway": "198.18.0.1"}],
            "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["203.0.113.10"]}, "x": 1,
        })
    }

    fn added() -> Value {
        json!({
            "interfaces": [{"name": "aero1", "mac": "c", "mtu": 1452}, {"name": "aero0", "mac": "d", "mtu": 1452, "sandbox": "/n"}],
            "ips": [{"address": "2001:db8:a:1::1/64", "interface": 1}, {"address": "2001:db8:a:1::1/128", "interface": -1}],
            "routes": [{"dst": "2001:db8:a::/48", "gw": "fe80::1"}],
        })
    }

    #[test]
    fn what_was_added_comes_behind_what_was_there_and_nothing_is_lost() {
        let r = result(Some(&before()), Some(&added()), "eth0", "1.0.0");
        assert_eq!(r["interfaces"].as_array().unwrap().len(), 4);
        assert_eq!(r["ips"][1], json!({"address": "2001:db8:a:1::1/64", "interface": 3}));
        assert_eq!(r["ips"][2], json!({"address": "2001:db8:a:1::1/128", "interface": 1}));
        assert_eq!(r["routes"].as_array().unwrap().len(), 2);
        assert_eq!((&r["dns"], &r["x"]), (&before()["dns"], &before()["x"]));
        assert_eq!(r["interfaces"][3].get("mtu"), None, "1.0.0 has no mtu");
        let r = result(Some(&before()), Some(&added()), "eth0", "1.1.0");
        assert_eq!(r["interfaces"][3]["mtu"], 1452);
    }

    #[test]
    fn versions_before_1_name_the_family_of_an_address() {
        let r = result(Some(&before()), Some(&added()), "eth0", "0.4.0");
        assert_eq!(r["cniVersion"], "0.4.0");
        assert_eq!((&r["ips"][0]["version"], &r["ips"][1]["version"]), (&json!("4"), &json!("6")));
        let again = result(Some(&r), None, "eth0", "1.0.0");
        assert_eq!(again["ips"][0].get("version"), None);
    }

    #[test]
    fn a_pod_that_is_not_enrolled_gets_the_result_before_ours() {
        let r = result(Some(&before()), None, "eth0", "1.0.0");
        assert_eq!(r, before());
        assert_eq!(result(None, None, "eth0", "1.1.0"), json!({"cniVersion": "1.1.0"}));
    }

    #[test]
    fn as_a_delegate_the_result_is_ours_alone() {
        let r = result(None, Some(&added()), "net1", "1.1.0");
        assert_eq!(r["ips"].as_array().unwrap().len(), 1, "there is no primary interface to name");
        assert_eq!(r["ips"][0]["interface"], 1);
    }
}
