//! Names of the annotations and labels through which the operator talks to agents and to people.
//!
//! The operator writes the annotations on pods by server-side apply with the field manager
//! [`FIELD_MANAGER`]. An agent ignores all of them when [`POD_UID`] is not the pod's own UID: they
//! were then copied from another pod (by a template or a backup).

/// Field manager of the pod annotations.
pub const FIELD_MANAGER: &str = "aero-operator-client";

/// Name of the AeroClient (in the pod's namespace) that enrolled the pod.
pub const CLIENT: &str = "aerolink.dev/client";
/// Identity of the pod inside its AeroClient.
pub const IDENTITY: &str = "aerolink.dev/identity";
/// UUID of the identity, the DUID-UUID on the AERO link.
pub const CLIENT_ID: &str = "aerolink.dev/client-id";
/// The identity's prefixes, separated by commas.
pub const PREFIX: &str = "aerolink.dev/prefix";
/// Epoch of the mapping with which this pod holds the prefix.
pub const EPOCH: &str = "aerolink.dev/epoch";
/// UID of the pod that the annotations are for.
pub const POD_UID: &str = "aerolink.dev/pod-uid";
/// The link's pools (its aggregated service prefixes), separated by commas.
pub const ASPS: &str = "aerolink.dev/asps";
/// Name of the AeroLink.
pub const LINK: &str = "aerolink.dev/link";
/// Why the pod gets no prefix, as `<Reason>: <message>`; set in place of all others but [`POD_UID`].
pub const REFUSED: &str = "aerolink.dev/refused";

/// Label on the pods, the Service and the EndpointSlices of Servers; its value is `server`.
pub const COMPONENT_LABEL: &str = "aerolink.dev/component";
/// Label that names the AeroLink which a Server serves.
pub const LINK_LABEL: &str = "aerolink.dev/link";
/// Label that names the AeroServer.
pub const SERVER_LABEL: &str = "aerolink.dev/server";
/// Label that KubeVirt puts on the pod of a virtual machine; its value is the machine's name.
pub const KUBEVIRT_VM_LABEL: &str = "vm.kubevirt.io/name";
