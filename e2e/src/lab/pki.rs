//! Certificates and kubeconfigs of the lab, made anew for each.

use std::net::IpAddr;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::{Lab, control_plane};

/// Writes all of it below the lab's directory.
pub(super) fn write(lab: &Lab) -> anyhow::Result<()> {
    let dir = lab.dir().join("pki");
    std::fs::create_dir_all(&dir)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "aero-lab");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let ca = params.self_signed(&key)?;
    std::fs::write(dir.join("ca.crt"), ca.pem())?;
    let issuer = Issuer::new(params, key);
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
    let mut addresses: Vec<IpAddr> =
        ["127.0.0.1", "192.0.2.1", "203.0.113.1", "2001:db8:77::1", "2001:db8:5::1"]
            .iter()
            .filter_map(|a| a.parse().ok())
            .collect();
    certificate(&dir, "apiserver", "kube-apiserver", None, &names, &addresses, &issuer)?;
    certificate(&dir, "admin", "admin", Some("system:masters"), &[], &[], &issuer)?;
    let roles = [
        ("controller-manager", "system:kube-controller-manager"),
        ("scheduler", "system:kube-scheduler"),
        ("proxy", "system:kube-proxy"),
    ];
    for (name, user) in roles {
        certificate(&dir, name, user, None, &[], &[], &issuer)?;
    }
    for node in lab.nodes() {
        addresses = lab.node_addresses(&node);
        let user = format!("system:node:{node}");
        certificate(&dir, &node, &user, Some("system:nodes"), &[&node], &addresses, &issuer)?;
    }
    let account = KeyPair::generate()?;
    std::fs::write(dir.join("sa.key"), account.serialize_pem())?;
    std::fs::write(dir.join("sa.pub"), account.public_key_pem())?;
    let inside = control_plane::api_url(lab);
    for (name, _) in roles {
        kubeconfig(lab, name, &inside, &dir.join(format!("{name}.kubeconfig")))?;
    }
    for node in lab.nodes() {
        kubeconfig(lab, &node, &inside, &dir.join(format!("{node}.kubeconfig")))?;
    }
    Ok(())
}

fn certificate(
    dir: &Path,
    name: &str,
    user: &str,
    group: Option<&str>,
    names: &[&str],
    addresses: &[IpAddr],
    issuer: &Issuer<'_, KeyPair>,
) -> anyhow::Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    for name in names {
        params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
    }
    params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, issuer)?;
    std::fs::write(dir.join(format!("{name}.crt")), certificate.pem())?;
    std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
    Ok(())
}

/// A kubeconfig of a user at a URL.
pub(super) fn kubeconfig(lab: &Lab, user: &str, url: &str, path: &Path) -> anyhow::Result<()> {
    let dir = lab.dir().join("pki");
    let file = |name: String| dir.join(name).display().to_string();
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {
            "server": url, "certificate-authority": file("ca.crt".into()),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate": file(format!("{user}.crt")),
            "client-key": file(format!("{user}.key")),
        }}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
    });
    std::fs::write(path, serde_yaml::to_string(&config)?)?;
    Ok(())
}
