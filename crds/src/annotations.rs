//! Annotations that the operator writes on pods. Agents act on them, and users look at them.

/// Name of the AeroClient that selects the pod.
pub const CLIENT: &str = "aerolink.dev/client";
/// The pod's identity inside the AeroClient.
pub const IDENTITY: &str = "aerolink.dev/identity";
/// UUID of the identity's DUID.
pub const CLIENT_ID: &str = "aerolink.dev/client-id";
/// Its prefixes, separated by commas.
pub const PREFIX: &str = "aerolink.dev/prefix";
/// The mapping's epoch.
pub const EPOCH: &str = "aerolink.dev/epoch";
/// UID of the pod that the annotations are for; on any other pod they mean nothing.
pub const POD_UID: &str = "aerolink.dev/pod-uid";
/// The service prefixes of the link, separated by commas.
pub const ASPS: &str = "aerolink.dev/asps";
/// Name of the link.
pub const LINK: &str = "aerolink.dev/link";
/// Why the pod gets no prefix: `Reason: sentence`.
pub const REFUSED: &str = "aerolink.dev/refused";

/// Label of the Service (and so of its EndpointSlices) through which agents find Servers.
pub const COMPONENT_LABEL: &str = "aerolink.dev/component";
/// Its value for Servers.
pub const COMPONENT_SERVER: &str = "server";
/// Its value for Relays.
pub const COMPONENT_RELAY: &str = "relay";
/// Label that names the link on what belongs to one.
pub const LINK_LABEL: &str = "aerolink.dev/link";
/// Label that names the AeroServer on what belongs to one.
pub const SERVER_LABEL: &str = "aerolink.dev/server";
/// Label that names the AeroRelay on what belongs to one.
pub const RELAY_LABEL: &str = "aerolink.dev/relay";
/// Label, with the value `true`, of the ConfigMaps of interior BGP.
pub const ROUTING_LABEL: &str = "aerolink.dev/routing";
