use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use serde_json::json;

use super::*;
use crate::agent::fake_api::FakeApi;

fn pod(name: &str, app: &str) -> Pod {
    let metadata =
        json!({"name": name, "namespace": "default", "uid": name, "labels": {"app": app}});
    serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": []}})).unwrap()
}

/// What an agent asks whose node has two pods; and the hand that fills its cache of pods.
fn enrolment(api: &FakeApi) -> (Enrolment, Writer<Pod>) {
    let (pods, mut writer) = kube::runtime::reflector::store();
    writer.apply_watcher_event(&Event::Init);
    for name in ["old", "other"] {
        writer.apply_watcher_event(&Event::InitApply(pod(name, "none")));
    }
    writer.apply_watcher_event(&Event::InitDone);
    (Enrolment::new(api.client(), pods), writer)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(8)
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_client_was_made_a_moment_before_is_enrolled() {
    let api = FakeApi::default();
    let (asks, _cache) = enrolment(&api);
    assert_eq!(asks.enrolled(&pod("old", "web"), soon()).await, Ok(false));
    // No news of it comes by any watch; the next question finds it all the same.
    api.set_client("web", "web", 1);
    assert_eq!(asks.enrolled(&pod("other", "web"), soon()).await, Ok(true));
    assert_eq!(asks.enrolled(&pod("old", "web"), soon()).await, Ok(true), "also the one before");
    assert_eq!(asks.enrolled(&pod("other", "db"), soon()).await, Ok(false));
    api.remove_client("web");
    assert_eq!(asks.enrolled(&pod("other", "web"), soon()).await, Ok(false));
}

#[tokio::test(start_paused = true)]
async fn a_spec_is_read_once_per_generation_and_else_only_the_list_of_names() {
    let api = FakeApi::default();
    let (asks, _cache) = enrolment(&api);
    let names = "metadata of /apis/aerolink.dev/v1alpha1/namespaces/default/aeroclients?";
    let whole =
        |name: &str| format!("/apis/aerolink.dev/v1alpha1/namespaces/default/aeroclients/{name}?");
    api.set_client("web", "web", 1);
    api.set_client("db", "db", 1);
    assert_eq!(asks.enrolled(&pod("old", "web"), soon()).await, Ok(true));
    assert_eq!(api.asked(), [whole("db"), whole("web"), names.to_string()]);
    assert_eq!(asks.enrolled(&pod("other", "db"), soon()).await, Ok(true));
    assert_eq!(api.asked(), [names]);
    // Another selector is another generation.
    api.set_client("web", "shop", 2);
    assert_eq!(asks.enrolled(&pod("other", "web"), soon()).await, Ok(false));
    assert_eq!(api.asked(), [whole("web"), names.to_string()]);
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_only_a_pod_that_was_found_not_enrolled_before_may_start() {
    let api = FakeApi::default();
    api.set_client("web", "web", 1);
    let (asks, _cache) = enrolment(&api);
    assert_eq!(asks.enrolled(&pod("old", "none"), soon()).await, Ok(false));
    api.set_away(true);
    assert_eq!(asks.enrolled(&pod("old", "none"), soon()).await, Ok(false));
    let began = Instant::now();
    for newcomer in [pod("other", "none"), pod("third", "web")] {
        let why = asks.enrolled(&newcomer, soon()).await.unwrap_err();
        assert!(why.contains("AeroClients of default") && why.contains("it is away"), "{why}");
    }
    assert!(began.elapsed() <= Duration::from_secs(16), "{:?}", began.elapsed());
    // It comes back while a pod waits.
    let waiting = pod("third", "web");
    let ((), answer) = tokio::join!(
        async {
            sleep(Duration::from_secs(3)).await;
            api.set_away(false);
        },
        asks.enrolled(&waiting, soon())
    );
    assert_eq!(answer, Ok(true));
}

#[tokio::test(start_paused = true)]
async fn pods_that_were_there_before_the_agent_are_asked_about_at_its_start() {
    let api = FakeApi::default();
    let (asks, _cache) = enrolment(&api);
    asks.survey().await;
    api.set_away(true);
    assert_eq!(asks.enrolled(&pod("old", "none"), soon()).await, Ok(false));
    assert!(asks.enrolled(&pod("new", "none"), soon()).await.is_err());
}
