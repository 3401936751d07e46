// Launches a serialised layer of the plugin, without TensorRT, through the driver that is found.
//
//     harness LAYER BATCH INPUT… / OUTPUT… / WORKSPACE         addresses
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>

#include "resident.h"

int main(int count, char** arguments) {
    try {
        std::ifstream file(arguments[1], std::ios::binary);
        const samtrt::Bytes content((std::istreambuf_iterator<char>(file)), {});
        auto layer = std::make_shared<const samtrt::Layer>(
            samtrt::Layer::deserialized(content.data(), content.size()));
        if (layer->serialized() != content || layer->serialized_size() != content.size())
            throw samtrt::Error("what was read is written otherwise");
        const int batch = std::atoi(arguments[2]);
        std::vector<void*> places[3];
        int kind = 0;
        for (int i = 3; i < count; ++i) {
            if (std::strcmp(arguments[i], "/") == 0)
                ++kind;
            else
                places[kind].push_back(reinterpret_cast<void*>(std::strtoull(arguments[i], nullptr, 0)));
        }
        samtrt::Resident resident(layer);
        std::cout << "workspace " << layer->workspace_bytes << std::endl << "ready" << std::endl;
        resident.launch(batch, places[0].data(), places[1].data(), places[2][0], nullptr);
    } catch (const std::exception& error) {
        std::cout << "error: " << error.what() << std::endl;
        return 1;
    }
}
