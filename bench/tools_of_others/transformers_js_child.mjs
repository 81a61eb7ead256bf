// Generates in transformers.js on Node: `node transformers_js_child.mjs FOLDER TEXT TOKENS`, prints one JSON line.
// It is copied beside the node_modules it uses.
import path from "node:path";
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

const [folder, text, count] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder)) + "/";
const name = path.basename(folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const where = { subfolder: "", model_file_name: "model", dtype: "fp32", device: "cpu" }; // fp32: no suffix to the name
const model = await AutoModelForCausalLM.from_pretrained(name, where);
const encoded = tokenizer(text);
const output = await model.generate({ ...encoded, max_new_tokens: Number(count), do_sample: false });
const tokens = output.tolist()[0].map(Number);
const length = encoded.input_ids.dims[1];
console.log(JSON.stringify({ version: env.version, prompt: tokens.slice(0, length), generated: tokens.slice(length) }));
