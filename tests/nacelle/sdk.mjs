// Asks with Nacelle's own client: `node sdk.mjs <endpoint> <JSON of [{query, variables}]> [plain]`; prints JSON.
import { StorefrontClient, defaultExchanges, persistedExchange } from '@nacelle/storefront-sdk';

const [endpoint, queries, plain] = process.argv.slice(2);
const exchanges = plain ? defaultExchanges.filter((each) => each !== persistedExchange) : defaultExchanges;
const client = new StorefrontClient({ storefrontEndpoint: endpoint, exchanges });
const answers = [];
for (const asked of JSON.parse(queries)) {
	const { data, error } = await client.query(asked);
	answers.push({ data: data ?? null, error: error ? error.message : null });
}
console.log(JSON.stringify(answers));
