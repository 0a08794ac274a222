// Somebody at a browser: goes where it is sent, fills in every form as this person, and prints where it ends.
// Arguments: an address, a name. NODE_EXTRA_CA_CERTS names whom it trusts.
const [start, name] = process.argv.slice(2);
const jars = new Map();
const cookies = (host) => [...(jars.get(host) ?? new Map())].map(([k, v]) => `${k}=${v}`).join('; ');
const keep = (host, answer) => {
  const jar = jars.get(host) ?? new Map();
  for (const line of answer.headers.getSetCookie()) {
    const [pair] = line.split(';');
    const at = pair.indexOf('=');
    jar.set(pair.slice(0, at), pair.slice(at + 1));
  }
  jars.set(host, jar);
};

let [url, options] = [new URL(start), {}];
for (let step = 0; step < 40; step += 1) {
  const headers = { cookie: cookies(url.host), ...(options.headers ?? {}) };
  const answer = await fetch(url, { ...options, headers, redirect: 'manual' });
  keep(url.host, answer);
  if (answer.status >= 300 && answer.status < 400) {
    [url, options] = [new URL(answer.headers.get('location'), url), {}];
    continue;
  }
  const page = await answer.text();
  const form = /<form[^>]*>([\s\S]*?)<\/form>/.exec(page);
  if (!form || answer.status >= 400) {
    console.log(JSON.stringify({ status: answer.status, url: url.href, page: page.slice(0, 2000) }));
    process.exit(answer.status >= 400 ? 1 : 0);
  }
  const action = /action="([^"]*)"/.exec(form[0])?.[1] ?? '';
  const body = new URLSearchParams();
  for (const [input] of form[0].matchAll(/<(?:input|button)[^>]*>/g)) {
    const key = /name="([^"]*)"/.exec(input)?.[1];
    if (!key || key === 'abort') continue;
    body.set(key, /value="([^"]*)"/.exec(input)?.[1] ?? '');
  }
  if (body.has('login')) {
    body.set('login', name);
    body.set('password', 'any');
  }
  url = new URL(action || url, url);
  options = { method: 'POST', body, headers: { 'content-type': 'application/x-www-form-urlencoded' } };
}
console.log(JSON.stringify({ status: 0, url: url.href, page: 'too many steps' }));
process.exit(1);
