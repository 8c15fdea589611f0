// The openai package for Node: chat, streams, tools, errors. Usage: node with_openai.mjs MODULE, the file of the package.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const { default: OpenAI } = await import(pathToFileURL(process.argv[2]));
const server = spawn(process.env.ANYSPLIT_BINARY, ['serve', '--port', '0', '--tp', '2'], { stdio: ['ignore', 'ignore', 'pipe'] });
process.on('exit', () => server.kill());
const url = await new Promise((resolve, reject) => {
    server.on('error', reject).on('exit', () => reject(new Error('the server did not start')));
    // Read to its end, so that the server never waits for a reader.
    createInterface(server.stderr).on('line', (line) => {
        const listening = line.match(/listening on (http:\S+)/);
        if (listening) resolve(listening[1]);
    });
});
const model = 'anysplit-demo';
const messages = [{ role: 'user', content: 'What is a harbor?' }];
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0, timeout: 60_000 });
const chat = client.chat.completions;

const parameters = {
    type: 'object', additionalProperties: false, required: ['city'], properties: { city: { enum: ['Oslo', 'Lima'] } },
};
const weather = { type: 'function', function: { name: 'get_weather', description: 'The weather of a city', parameters } };

const checks = {
    async 'models are listed'() {
        const ids = [];
        for await (const found of client.models.list()) ids.push(found.id);
        assert.deepEqual(ids, [model]);
    },
    async 'a stream has the text and the usage of the whole'() {
        const asked = { model, messages, temperature: 0.9, seed: 6, max_tokens: 40 };
        const whole = await chat.create(asked);
        let [text, usage] = ['', null];
        for await (const chunk of await chat.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
            text += chunk.choices[0]?.delta.content ?? '';
            usage = chunk.usage ?? usage;
        }
        assert.equal(text, whole.choices[0].message.content);
        assert.equal(usage.total_tokens, whole.usage.total_tokens);
    },
    async 'the stream helper puts choices together'() {
        const asked = { model, messages, n: 2, seed: 1, max_tokens: 20, logprobs: true };
        const whole = await chat.create(asked);
        const final = await chat.stream(asked).finalChatCompletion();
        const told = (answer) => answer.choices.map(({ message, logprobs, finish_reason }) => ({
            content: message.content, finish_reason, tokens: logprobs.content.map(({ token, logprob }) => [token, logprob]),
        }));
        assert.deepEqual(told(final), told(whole));
    },
    async 'a json schema is conformed to'() {
        const format = { type: 'json_schema', json_schema: { name: 'city', strict: true, schema: parameters } };
        const answer = await chat.parse({ model, messages, temperature: 0, max_tokens: 60, response_format: format });
        assert.ok(['Oslo', 'Lima'].includes(JSON.parse(answer.choices[0].message.content).city));
    },
    async 'a streamed call is the whole one'() {
        const asked = {
            model, messages, temperature: 0, max_tokens: 100, tools: [weather], tool_choice: 'required', parallel_tool_calls: false,
        };
        const [call] = (await chat.create(asked)).choices[0].message.tool_calls;
        const final = await chat.stream(asked).finalChatCompletion();
        const calls = final.choices[0].message.tool_calls;
        assert.equal(calls.length, 1);
        assert.deepEqual(calls[0].function, call.function);
        assert.equal(call.function.name, 'get_weather');
        assert.ok(['Oslo', 'Lima'].includes(JSON.parse(call.function.arguments).city));
        assert.equal(final.choices[0].finish_reason, 'tool_calls');
    },
    async 'runTools calls the function and goes on with what it gave'() {
        const asked = [];
        const tool = {
            type: 'function',
            function: { ...weather.function, parse: JSON.parse, function: ({ city }) => asked.push(city) && 'rain' },
        };
        for (const stream of [false, true]) {
            const run = chat.runTools(
                {
                    model, messages, temperature: 0, max_tokens: 100, tools: [tool], stream, parallel_tool_calls: false,
                    tool_choice: 'required',
                },
                { maxChatCompletions: 2 },
            );
            await run.done();
            assert.ok(run.messages.some(({ role, content }) => role === 'tool' && content === 'rain'));
        }
        assert.ok(asked.length >= 2 && asked.every((city) => ['Oslo', 'Lima'].includes(city)), `${asked}`);
    },
    async 'errors are of their classes'() {
        await assert.rejects(chat.create({ model, messages, n: 0 }), (error) => {
            return error instanceof OpenAI.BadRequestError && error.param === 'n' && error.status === 400;
        });
        await assert.rejects(chat.create({ model: 'gpt-5', messages }), OpenAI.NotFoundError);
        await assert.rejects(chat.create({ model, messages, temperature: 'hot', stream: true }), OpenAI.BadRequestError);
        const nobody = new OpenAI({ baseURL: 'http://127.0.0.1:1/v1', apiKey: 'none', maxRetries: 0 });
        await assert.rejects(nobody.models.list(), OpenAI.APIConnectionError);
    },
    async 'a stream that is left is no trouble for the next request'() {
        const stream = await chat.create({ model, messages, max_tokens: 1500, stream: true });
        for await (const _ of stream) break;
        assert.ok((await chat.create({ model, messages, max_tokens: 5 })).choices[0].message.content);
    },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
    try {
        await check();
        console.log(`ok      openai for Node: ${name}`);
    } catch (error) {
        failed += 1;
        console.log(`FAILED  openai for Node: ${name}: ${String(error).split(/\s+/).join(' ').slice(0, 400)}`);
    }
}
process.exit(failed ? 1 : 0);
