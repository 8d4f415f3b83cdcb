//! The CRDs as YAML. The only place that knows the YAML crate.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{AcpMapping, AeroClient, AeroLink, AeroRelay, AeroServer};

/// Every CRD, in the order in which people think of them.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![AeroLink::crd(), AeroServer::crd(), AeroRelay::crd(), AeroClient::crd(), AcpMapping::crd()]
}

/// File name of a CRD under `yaml/`.
#[must_use]
pub fn file_name(crd: &CustomResourceDefinition) -> String {
    format!("{}.yaml", crd.spec.names.plural)
}

/// A CRD as YAML text.
pub fn render(crd: &CustomResourceDefinition) -> Result<String, serde_yaml::Error> {
    serde_yaml::to_string(crd)
}
