// An identity provider for tests: the certified `oidc-provider`, over TLS on loopback. Its people are in PEOPLE, with any password.
// Arguments: a folder with cert.pem and key.pem; the folder with its packages; a port, 0 lets the system choose. Prints one line of
// JSON when it listens. Each start has keys of its own.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { createRequire } from 'node:module';
import { generateKeyPairSync, randomBytes } from 'node:crypto';

const [folder, modules, port] = process.argv.slice(2);
const { default: Provider } = await import(createRequire(`${modules}/`).resolve('oidc-provider'));

const PEOPLE = {
  sara: { groups: ['fl-science'], preferred_username: 'sara' },
  omar: { groups: ['fl-audit', 'everybody'], preferred_username: 'omar' },
  guest: { groups: ['everybody'], preferred_username: 'guest' },
};
const RESOURCE = 'https://coordinator.falaj.test';
const pipeline = (client_id, client_secret) => ({
  client_id,
  client_secret,
  grant_types: ['client_credentials'],
  redirect_uris: [],
  response_types: [],
});
const key = (type, options) => {
  const { privateKey } = generateKeyPairSync(type, options);
  return { ...privateKey.export({ format: 'jwk' }), use: 'sig', kid: randomBytes(8).toString('hex') };
};

const server = createServer({ cert: readFileSync(`${folder}/cert.pem`), key: readFileSync(`${folder}/key.pem`) });
server.listen(Number(port), '127.0.0.1', () => {
  const issuer = `https://localhost:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: 'falaj-cli',
        application_type: 'native',
        token_endpoint_auth_method: 'none',
        redirect_uris: ['http://127.0.0.1/callback'],
        grant_types: ['authorization_code', 'urn:ietf:params:oauth:grant-type:device_code'],
        response_types: ['code'],
        id_token_signed_response_alg: 'ES256',
      },
      pipeline('nightly', 'a-secret-of-the-pipeline'),
      pipeline('stranger', 'a-secret-of-somebody-else'),
    ],
    jwks: { keys: [key('rsa', { modulusLength: 2048 }), key('ec', { namedCurve: 'P-256' })] },
    cookies: { keys: [randomBytes(16).toString('hex')] },
    claims: { openid: ['sub', 'groups', 'preferred_username'] },
    conformIdTokenClaims: false,
    pkce: { required: () => true },
    ttl: { IdToken: 600, AccessToken: 600, ClientCredentials: 600 },
    features: {
      devInteractions: { enabled: true },
      deviceFlow: { enabled: true },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, resource) => {
          if (resource !== RESOURCE) throw new Error('no such resource');
          return { scope: '', audience: RESOURCE, accessTokenFormat: 'jwt', jwt: { sign: { alg: 'RS256' } } };
        },
        defaultResource: () => undefined,
        useGrantedResource: () => true,
      },
    },
    findAccount: (_, id) => PEOPLE[id] && { accountId: id, claims: () => ({ sub: id, ...PEOPLE[id] }) },
  });
  server.on('request', provider.callback());
  console.log(JSON.stringify({ issuer }));
});
