// Keeps every file of this version of the page, and answers from there: offline as well. The headers that
// let WebAssembly use threads are added for hosts that do not send them.
const version = new URL(location.href).searchParams.get("version");
const CACHE = `flasepformer-${version}`;
const ISOLATED = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp", "Cross-Origin-Resource-Policy": "same-origin" };

addEventListener("install", (event) => event.waitUntil(install()));
addEventListener("activate", (event) => event.waitUntil(activate()));
addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method === "GET" && url.origin === location.origin) event.respondWith(answer(event.request, url));
});

async function install() {
  const cache = await caches.open(CACHE);
  const listed = await fetch("files.json", { cache: "no-cache" });
  const { version: served, files } = await listed.clone().json();
  if (served !== version) throw new Error("the page has changed meanwhile");
  await cache.put("files.json", listed);
  for (const [name, integrity] of Object.entries(files)) {
    const response = await fetch(name, { integrity, cache: "no-cache" });
    if (!response.ok) throw new Error(`${name}: ${response.status}`);
    await cache.put(name, response);
  }
  await skipWaiting();
}

async function activate() {
  for (const name of await caches.keys()) if (name.startsWith("flasepformer-") && name !== CACHE) await caches.delete(name);
  await clients.claim();
}

async function answer(request, url) {
  const cache = await caches.open(CACHE);
  const isList = url.pathname.endsWith("/files.json");
  if (isList) {
    try {
      return await fetch(request); // tells whether there is a newer version
    } catch {
      return (await cache.match("files.json")) ?? Response.error();
    }
  }
  const name = url.pathname.endsWith("/") ? "index.html" : request;
  const kept = await cache.match(name, { ignoreSearch: true });
  const response = kept ?? (await fetch(request));
  if (response.type === "opaque" || response.status === 0) return response;
  const headers = new Headers(response.headers);
  for (const [key, value] of Object.entries(ISOLATED)) headers.set(key, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
