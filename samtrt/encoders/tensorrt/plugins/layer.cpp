#include "layer.h"

#include <cstring>

#include "sha256.h"

namespace samtrt {
namespace {

constexpr uint32_t VERSION = 1;  // of the description; launches.py
constexpr uint32_t MOST = 1 << 16;  // of anything that is counted

// Reads little-endian values in turn.
class Reader {
  public:
    Reader(const uint8_t* data, size_t size) : at_(data), left_(size) {}

    template <class Value>
    Value value() {
        Value value;
        std::memcpy(&value, take(sizeof value), sizeof value);
        return value;
    }
    uint32_t number() { return value<uint32_t>(); }
    uint32_t count() {
        const uint32_t count = number();
        if (count > MOST) throw Error("a plugin layer's description counts " + std::to_string(count));
        return count;
    }
    Bytes bytes(size_t size) {
        const uint8_t* from = take(size);
        return Bytes(from, from + size);
    }
    std::string text() {
        const Bytes content = bytes(count());
        return std::string(content.begin(), content.end());
    }
    template <class Value>
    std::vector<Value> list() {
        std::vector<Value> values(count());
        for (Value& each : values) each = value<Value>();
        return values;
    }
    // The number of an enumeration's member, of `members`.
    template <class Kind>
    Kind kind(uint32_t members) {
        const uint32_t found = number();
        if (found >= members) throw Error("a plugin layer's description has an unknown kind");
        return static_cast<Kind>(found);
    }
    void end() const {
        if (left_ != 0) throw Error("a plugin layer is longer than it says");
    }

  private:
    const uint8_t* take(size_t size) {
        if (size > left_) throw Error("a plugin layer is cut short");
        const uint8_t* from = at_;
        at_ += size, left_ -= size;
        return from;
    }

    const uint8_t* at_;
    size_t left_;
};

Place read_place(Reader& reader) {
    const Source source = reader.kind<Source>(4);
    return {source, reader.number()};
}

Piece read_piece(Reader& reader) {
    Piece piece{};
    piece.kind = reader.kind<Piece::Kind>(3);
    if (piece.kind == Piece::BYTES) {
        piece.bytes = reader.bytes(reader.count());
    } else if (piece.kind == Piece::ADDRESS) {
        piece.place = read_place(reader);
    } else {
        piece.map.place = read_place(reader);
        piece.map.sizes = reader.list<uint64_t>();
        piece.map.strides = reader.list<uint64_t>();
        piece.map.box = reader.list<uint32_t>();
        const size_t rank = piece.map.sizes.size();
        if (rank == 0 || rank > 5 || piece.map.strides.size() + 1 != rank ||
            piece.map.box.size() != rank)
            throw Error("a plugin layer describes a tensor of an impossible rank");
    }
    return piece;
}

Launch read_launch(Reader& reader) {
    Launch launch{};
    launch.code = reader.number();
    for (uint32_t& extent : launch.grid) extent = reader.number();
    launch.threads = reader.number();
    launch.shared_bytes = reader.number();
    launch.arguments.resize(reader.count());
    for (auto& argument : launch.arguments) {
        argument.resize(reader.count());
        for (Piece& piece : argument) piece = read_piece(reader);
    }
    return launch;
}

}  // namespace

Layer::Layer(std::vector<Bytes> fields) : fields_(std::move(fields)) {
    if (fields_.empty()) throw Error("a plugin layer without a description");
    Reader reader(fields_[0].data(), fields_[0].size());
    const uint32_t version = reader.number();
    if (version != VERSION)
        throw Error("a plugin layer of version " + std::to_string(version) + ", expected " +
                    std::to_string(VERSION) + ": build the engine again");
    inputs = [&] {
        std::vector<Output::Type> types(reader.count());
        for (auto& type : types) type = reader.kind<Output::Type>(2);
        return types;
    }();
    outputs.resize(reader.count());
    for (Output& output : outputs) {
        output.type = reader.kind<Output::Type>(2);
        output.shape = reader.list<int32_t>();
    }
    codes.resize(reader.count());
    const size_t constants = reader.count();
    workspace_bytes = reader.value<uint64_t>();
    if (fields_.size() != 1 + codes.size() + constants)
        throw Error("a plugin layer has " + std::to_string(fields_.size()) + " fields, expected " +
                    std::to_string(1 + codes.size() + constants));
    for (size_t i = 0; i < codes.size(); ++i) {
        codes[i].function = reader.text();
        codes[i].image = fields_[1 + i];
        Digest expected;
        const Bytes digest = reader.bytes(expected.size());
        std::memcpy(expected.data(), digest.data(), expected.size());
        if (sha256(codes[i].image.data(), codes[i].image.size()) != expected)
            throw Error("the machine code of " + codes[i].function +
                        " is not the one that the engine was built with");
    }
    launches.resize(reader.count());
    for (Launch& launch : launches) {
        launch = read_launch(reader);
        if (launch.code >= codes.size()) throw Error("a plugin layer launches what is not there");
        for (const auto& argument : launch.arguments)
            for (const Piece& piece : argument) {
                if (piece.kind == Piece::BYTES) continue;
                const Place& place = piece.kind == Piece::MAP ? piece.map.place : piece.place;
                const size_t most = place.source == Source::INPUT    ? inputs.size()
                                    : place.source == Source::OUTPUT ? outputs.size()
                                    : place.source == Source::CONSTANT ? constants
                                                                       : workspace_bytes > 0;
                if (place.index >= most) throw Error("a plugin layer reads what is not there");
            }
    }
    reader.end();
}

Layer Layer::deserialized(const uint8_t* data, size_t size) {
    Reader reader(data, size);
    std::vector<Bytes> fields(reader.count());
    for (Bytes& field : fields) field = reader.bytes(reader.value<uint64_t>());
    reader.end();
    return Layer(std::move(fields));
}

size_t Layer::serialized_size() const {
    size_t size = sizeof(uint32_t);
    for (const Bytes& field : fields_) size += sizeof(uint64_t) + field.size();
    return size;
}

Bytes Layer::serialized() const {
    Bytes content;
    content.reserve(serialized_size());
    auto append = [&](const auto& value) {
        const auto* from = reinterpret_cast<const uint8_t*>(&value);
        content.insert(content.end(), from, from + sizeof value);
    };
    append(uint32_t(fields_.size()));
    for (const Bytes& field : fields_) {
        append(uint64_t(field.size()));
        content.insert(content.end(), field.begin(), field.end());
    }
    return content;
}

}  // namespace samtrt
