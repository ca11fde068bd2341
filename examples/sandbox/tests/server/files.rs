//! Files of a session, up and down.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;

use crate::fixture::Server;
use testkit::audit::assert_bytes;

testkit::trials! {
    crate::on_engine:
        files_return_byte_for_byte,
        a_directory_travels_as_an_archive,
        missing_files_are_not_found,
        large_files_are_refused,
        odd_paths_are_refused,
        links_do_not_leave_the_container,
        archives_do_not_leave_the_container;
    crate::on_process:
        local_processes_have_no_files,
}

async fn files_return_byte_for_byte(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let mut state = 1_u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let large: Vec<u8> = noise.take(5 << 20).collect();
    for (path, content) in [
        ("/tmp/empty", Vec::new()),
        ("/tmp/large", large),
        ("/tmp/two words & ünï/cödé?.txt", b"text\n\0\xff".to_vec()),
        ("/tmp/-rf", b"a".to_vec()),
    ] {
        if path.matches('/').count() > 2 {
            alice.shell(&id, "mkdir '/tmp/two words & ünï'").await.ok();
        }
        alice.put(&id, path, content.clone()).await.expect(204);
        let answer = alice.fetch(&id, path).await;
        assert_bytes(answer.bytes(), &content);
        assert_eq!(answer.headers["content-type"], "application/octet-stream");
        let sum = alice.shell(&id, &format!("wc -c < '{path}'")).await;
        assert_eq!(sum.ok().trim(), content.len().to_string());
    }
    alice
        .put(&id, "/tmp/empty", b"full now".to_vec())
        .await
        .expect(204);
    assert_bytes(alice.fetch(&id, "/tmp/empty").await.bytes(), b"full now");

    let request = alice.request(
        reqwest::Method::PUT,
        &format!("/sessions/{id}/files?path=/tmp/tool&mode=755"),
    );
    let script = "#!/bin/sh\necho it runs\n";
    alice.send(request.body(script)).await.expect(204);
    assert_eq!(alice.shell(&id, "/tmp/tool").await.ok(), "it runs\n");
}

/// An archive of files.
fn pack(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // Written to the field: `set_path` refuses the names of an attacker.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// The files of an archive.
fn unpack(bytes: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(bytes);
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            files.insert(name, content);
        }
    }
    files
}

async fn a_directory_travels_as_an_archive(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    alice.shell(&id, "mkdir /tmp/in").await.ok();
    let archive = pack(&[("one", "1"), ("deep/two", "2"), ("deep/er/three", "3")]);
    alice.put_tar(&id, "/tmp/in", archive).await.expect(204);
    let found = alice
        .shell(
            &id,
            "cat /tmp/in/one /tmp/in/deep/two /tmp/in/deep/er/three",
        )
        .await;
    assert_eq!(found.ok(), "123");

    let answer = alice.fetch_tar(&id, "/tmp/in").await;
    assert_eq!(answer.headers["content-type"], "application/x-tar");
    let files = unpack(answer.bytes());
    let contents: Vec<_> = files.values().map(String::as_str).collect();
    assert_eq!(contents, ["3", "2", "1"], "{files:?}");
    assert!(
        files.keys().any(|name| name.ends_with("deep/er/three")),
        "{files:?}"
    );
    let one = unpack(alice.fetch_tar(&id, "/tmp/in/one").await.bytes());
    assert_eq!(one.into_values().collect::<Vec<_>>(), ["1"]);
    // A directory is no file.
    alice.fetch(&id, "/tmp/in").await.detail(400);
    alice
        .put_tar(&id, "/tmp/in", b"no archive".repeat(100))
        .await
        .detail(400);
}

async fn missing_files_are_not_found(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    alice.fetch(&id, "/tmp/absent").await.detail(404);
    alice.fetch_tar(&id, "/tmp/absent").await.detail(404);
    alice
        .put(&id, "/absent/directory/file", b"x".to_vec())
        .await
        .detail(404);
    alice.end(&id).await;
    alice.fetch(&id, "/tmp").await.detail(409);
    alice.put(&id, "/tmp/x", b"x".to_vec()).await.detail(409);
}

async fn large_files_are_refused(server: &mut Server) {
    server.restart_with_quota("file_bytes = 100000").await;
    let alice = server.alice();
    let id = server.session().await;
    alice
        .put(&id, "/tmp/most", vec![b'x'; 100_000])
        .await
        .expect(204);
    assert_eq!(alice.fetch(&id, "/tmp/most").await.bytes().len(), 100_000);
    alice
        .put(&id, "/tmp/more", vec![b'x'; 100_001])
        .await
        .detail(413);
    alice.fetch(&id, "/tmp/more").await.detail(404);
    alice
        .shell(&id, "mkdir /tmp/d; head -c 100001 /dev/zero > /tmp/d/large")
        .await
        .ok();
    alice.fetch(&id, "/tmp/d/large").await.detail(413);
    // A large archive is refused, or cut: it must not seem complete.
    let request = alice.request(
        reqwest::Method::GET,
        &format!("/sessions/{id}/files?path=/tmp/d&archive=true"),
    );
    let response = request.send().await.unwrap();
    if response.status() != 413 {
        assert_eq!(response.status(), 200);
        assert!(response.bytes().await.is_err());
    }
    assert_eq!(
        alice.shell(&id, "rm -r /tmp/d; echo fine").await.ok(),
        "fine\n"
    );
}

async fn odd_paths_are_refused(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let files = format!("/sessions/{id}/files");
    for query in [
        "",
        "?path=",
        "?path=relative",
        "?path=../etc/passwd",
        "?path=/tmp/a%00b",
        "?path=%00",
        "?path=/tmp/%ff%fe",
        "?path=/tmp/x&path=/tmp/y",
        "?path=/tmp/x&other=1",
    ] {
        let answer = alice.get(&format!("{files}{query}")).await;
        assert_eq!(answer.status, 400, "GET {query}: {answer}");
        let request = alice.request(reqwest::Method::PUT, &format!("{files}{query}"));
        let answer = alice.send(request.body("x")).await;
        assert_eq!(answer.status, 400, "PUT {query}: {answer}");
    }
    for mode in ["9", "abc", "100000", "-1"] {
        let path = format!("{files}?path=/tmp/x&mode={mode}");
        let request = alice.request(reqwest::Method::PUT, &path);
        alice.send(request.body("x")).await.detail(400);
    }
    for path in ["/", "/.", "/tmp/..", "/tmp/"] {
        let answer = alice.put(&id, path, b"x".to_vec()).await;
        let status = answer.status.as_u16();
        assert!([400, 404, 409].contains(&status), "{path}: {answer}");
    }
    assert_eq!(alice.shell(&id, "ls /tmp").await.ok(), "");
}

async fn links_do_not_leave_the_container(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let secret = server.dir().join("secret");
    fs::write(&secret, "of the host").unwrap();
    let (secret_path, dir) = (secret.to_str().unwrap(), server.dir().to_str().unwrap());
    let script = format!(
        "mkdir /etc; echo container > /etc/passwd; cd /tmp; mkdir links; ln -s {secret_path} file; \
         ln -s {dir} dir; ln -s /etc/passwd passwd; ln -s ../../../../../etc/passwd up; \
         ln -s loop loop; ln -s {secret_path} links/inside"
    );
    alice.shell(&id, &script).await.ok();
    for path in [
        "/tmp/file",
        "/tmp/dir/secret",
        "/tmp/loop",
        "/proc/1/root/tmp/file",
    ] {
        let answer = alice.fetch(&id, path).await;
        assert!(answer.status.is_client_error(), "{path}: {answer}");
        let answer = alice.fetch_tar(&id, path).await;
        assert!(
            !testkit::audit::contains(&answer.body, b"of the host"),
            "{path}"
        );
    }
    for path in ["/tmp/passwd", "/tmp/up", "/tmp/../../../etc/passwd"] {
        let answer = alice.fetch(&id, path).await;
        if answer.status == 200 {
            assert_bytes(&answer.body, b"container\n");
        } else {
            answer.detail(400);
        }
    }
    let links = alice.fetch_tar(&id, "/tmp/links").await;
    assert!(!testkit::audit::contains(links.bytes(), b"of the host"));
    for path in [
        "/tmp/file",
        "/tmp/dir/secret",
        "/tmp/dir/new",
        "/tmp/../../../etc/new",
    ] {
        alice.put(&id, path, b"attack".to_vec()).await;
        assert_eq!(fs::read_to_string(&secret).unwrap(), "of the host");
        assert!(!server.dir().join("new").exists());
        assert!(!fs::exists("/etc/new").unwrap());
    }
}

async fn archives_do_not_leave_the_container(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    alice.shell(&id, "mkdir -p /tmp/a/b").await.ok();
    let dir = server.dir().to_str().unwrap();
    let inside = format!("{dir}/escaped-1");
    let deep = format!("{}{dir}/escaped-2", "../".repeat(20));
    for name in [
        &inside,
        &deep,
        "../escaped-3",
        "../../../../../escaped-4",
        "/escaped-5",
    ] {
        // The container's own files may change: it is its client's.
        alice
            .put_tar(&id, "/tmp/a/b", pack(&[(name, "attack")]))
            .await;
    }
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    archive.append_link(&mut header, "link", dir).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(6);
    archive
        .append_data(&mut header, "link/escaped-6", &b"attack"[..])
        .unwrap();
    let archive = archive.into_inner().unwrap();
    alice.put_tar(&id, "/tmp/a/b", archive).await;
    for number in 1..=6 {
        let name = format!("escaped-{number}");
        assert!(!server.dir().join(&name).exists(), "{name}");
        assert!(!fs::exists(format!("/{name}")).unwrap(), "{name}");
        assert!(!fs::exists(format!("/tmp/{name}")).unwrap(), "{name}");
    }
    assert_eq!(alice.shell(&id, "echo fine").await.ok(), "fine\n");
}

async fn local_processes_have_no_files(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    alice.fetch(&id, "/etc/passwd").await.detail(501);
    alice.fetch_tar(&id, "/etc").await.detail(501);
    alice
        .put(&id, "/tmp/moat-test", b"x".to_vec())
        .await
        .detail(501);
    assert!(!fs::exists("/tmp/moat-test").unwrap());
}
